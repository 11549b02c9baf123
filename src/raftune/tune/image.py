"""The image learner: a pipeline's UNet or transformer, or a LoRA adapter of it, fine-tuned on the chosen pictures."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.image_processor import VaeImageProcessor

from .. import files
from ..errors import UserError
from ..families import Conditions, Family, family_of, tuned_families
from ..models import resident
from ..pipelines import (
    LORA,
    attach,
    class_of,
    configuration,
    fuse,
    load,
    load_denoiser,
    opened,
    precision,
    silent,
)
from ..types import Policy, Scored, digest, seed_of
from .lora import Lora
from .objective import Objective, objective_of
from .session import Session

ENCODED_AT_ONCE = 16
NOT_NEEDED = ("unet", "transformer", "safety_checker", "feature_extractor", "image_encoder")  # to encode a lesson
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Lesson:
    """What a round learns from, as the denoiser sees it: everything else of the pipeline is out of memory by then."""

    latents: list[torch.Tensor]  # C H W each
    rows: list[int]  # the row of each picture's prompt in `conditions`
    null: int  # the row there of no prompt at all
    conditions: Conditions
    factor: int  # pixels a latent
    objective: Objective
    family: Family
    identity: tuple[str, ...]


@dataclass(frozen=True)
class ImageLearner:
    """Fine-tunes the denoiser on the chosen pictures, with the loss that the pipeline's scheduler asks for.

    ``steps`` of the optimiser a round (the paper's count), but at most ``max_epochs`` passes over what was chosen: on
    few winners more passes collapse to one of them. ``batch_size`` pictures make a step, of which ``batch_rows`` go
    through the denoiser at once (None: all). The pictures' latents (the mode of the VAE's posterior) and the prompts'
    embeddings are computed once; VAE and text encoders leave memory before the denoiser enters it. ``snr_gamma``:
    min-SNR weighting of epsilon, v and sample prediction. ``caption_dropout``: share of the pictures learned without
    their prompt, so that what guidance steers away from is tuned with the rest. Noise, times and dropout are addressed
    by the step and the picture, so neither how a step is cut nor where a tuning was resumed changes the weights it ends
    with.
    """

    learning_rate: float = 2e-5
    steps: int = 100
    max_epochs: int = 10
    batch_size: int = 8
    batch_rows: int | None = None
    schedule: Literal["linear", "constant"] = "linear"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    optimizer: Literal["reset", "carry"] = "reset"
    gradient_checkpointing: bool = False
    save_steps: int = 100
    snr_gamma: float | None = 5.0
    caption_dropout: float = 0.0
    lora: Lora | None = field(default_factory=Lora)

    def tune(self, policy: Policy, chosen: Sequence[Scored], out: Path, seed: tuple[object, ...]) -> Policy:
        """Write the tuned checkpoint to ``out``: a whole pipeline, or with ``lora`` an adapter for
        ``load_lora_weights``."""
        if not chosen:
            raise UserError("tune: nothing to learn from")
        start = time.perf_counter()
        resident.free()
        set_seed(seed_of("tune", *seed) % 2**32)  # LoRA's initial weights and dropout draw from the global generator
        pipeline, adapter = opened(policy)
        lesson = prepare(pipeline, chosen, self.snr_gamma)
        resident.free()  # what the encoders held goes back before the denoiser comes
        name, denoiser = load_denoiser(pipeline, precision() if self.lora else torch.float32)
        self._make_trainable(denoiser, name, pipeline, adapter)
        session = self.fit(denoiser, lesson, policy, out, seed)
        with files.replacing_folder(out) as part:
            with silent():
                self._save(session.model, name, pipeline, part)
            pictures = sum(len(step) for step in self.order(len(chosen), seed))
            figures: dict[str, Any] = {"loss": session.loss, "steps": session.total, "pictures": pictures}
            if not session.resumed:  # a tuning that was cut in two has no rate of its own
                figures["pictures_per_s"] = pictures / (time.perf_counter() - start)
            files.write_json(part / files.FIGURES, figures)
            session.keep_moments()
        session.clean()
        return out

    def fit(self, denoiser: Any, lesson: Lesson, policy: Policy, out: Path, seed: tuple[object, ...]) -> Session:
        """The steps themselves; their state lies beside ``out``."""
        order = self.order(len(lesson.latents), seed)
        identity = digest(asdict(self), str(policy), lesson.identity, seed).hex()
        session = Session(self, denoiser, policy, out, len(order), identity, precision() == torch.bfloat16)
        session.run(lambda number: self._backward(session, lesson, order[number], (*seed, number)))
        return session

    def order(self, pictures: int, seed: tuple[object, ...]) -> list[list[int]]:
        """The pictures of each optimiser step, in an order that depends on the address alone."""
        steps: list[list[int]] = []
        for epoch in range(self.max_epochs):
            order = list(range(pictures))
            random.Random(seed_of("batches", *seed, epoch)).shuffle(order)
            steps += [order[at : at + self.batch_size] for at in range(0, pictures, self.batch_size)]
            if len(steps) >= self.steps:
                break
        return steps[: self.steps]

    def _backward(self, session: Session, lesson: Lesson, step: Sequence[int], address: tuple[object, ...]) -> float:
        """The gradients of one optimiser step; the mean loss per picture before it."""
        where = session.accelerator.device
        loss = 0.0
        for rows in alike(lesson.latents, step, self.batch_rows or self.batch_size):
            latents_BCHW = torch.stack([lesson.latents[row] for row in rows]).to(where)
            generators = [torch.Generator().manual_seed(seed_of("noise", *address, row)) for row in rows]
            noise = [torch.randn(latents_BCHW.shape[1:], generator=generator) for generator in generators]
            task = lesson.objective.task(latents_BCHW, torch.stack(noise).to(latents_BCHW), generators)
            prompts = [lesson.rows[row] for row in rows]
            if self.caption_dropout:
                dropped = [float(torch.rand(1, generator=own)) < self.caption_dropout for own in generators]
                prompts = [lesson.null if drop else row for row, drop in zip(prompts, dropped, strict=True)]
            conditions = {name: tensor[prompts].to(where) for name, tensor in lesson.conditions.items()}
            answer_BCHW = lesson.family.predict(
                session.prepared, task.noisy_BCHW, task.timesteps_B, conditions, lesson.factor
            )
            loss += session.backward(task.loss(answer_BCHW) / len(step))
        return loss

    def _make_trainable(self, denoiser: Any, name: str, pipeline: str, adapter: str | None) -> None:
        """All of it; or an adapter: the policy's own to go on with, or a new one."""
        if self.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        if self.lora is None:
            if adapter is not None:
                fuse(denoiser, name, adapter)
            denoiser.requires_grad_(True)
            return
        if not hasattr(denoiser, "add_adapter"):
            raise UserError(f"tune.lora: {type(denoiser).__name__} takes no adapter; set tune.lora: null")
        denoiser.requires_grad_(False)
        if adapter is None:
            self._add_adapter(denoiser, self.lora)
        else:
            attach(denoiser, name, adapter)
            had = denoiser.peft_config["default"]
            if (had.r, had.lora_alpha) != (self.lora.r, self.lora.alpha):
                raise UserError(
                    f"tune.lora: {adapter} is an adapter with r={had.r}, alpha={had.lora_alpha}; set these, or start "
                    f"from its base {pipeline}"
                )
        for parameter_name, parameter in denoiser.named_parameters():
            if "lora_" in parameter_name:
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()

    def _add_adapter(self, denoiser: Any, lora: Lora) -> None:
        from peft import LoraConfig

        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            init_lora_weights="gaussian",
            target_modules=list(lora.target_modules or ATTENTION),
        )
        try:
            denoiser.add_adapter(config)
        except ValueError as error:
            raise UserError(f"tune.lora: {str(error).splitlines()[0]}") from error

    def _save(self, denoiser: Any, name: str, pipeline: str, part: Path) -> None:
        if self.lora is None:
            folder = pipeline if Path(pipeline).is_dir() else str(DiffusionPipeline.download(pipeline))
            # All but the denoiser, so that the folder opens by itself, wherever it goes
            shutil.copytree(folder, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns(name, ".*", files.FIGURES))
            denoiser.save_pretrained(part / name)
            return
        from peft import get_peft_model_state_dict

        kind: Any = class_of(pipeline)
        layers = {
            f"{name}_lora_layers": get_peft_model_state_dict(denoiser, save_embedding_layers=False),
            f"{name}_lora_adapter_metadata": adapter_metadata(denoiser, pipeline),
        }
        kind.save_lora_weights(part, **layers)
        _in_order(part / LORA)


def prepare(pipeline: str, chosen: Sequence[Scored], snr_gamma: float | None) -> Lesson:
    """Pictures → latents, prompts → embeddings, once each; VAE and text encoders are gone when this returns."""
    family = family_of(class_of(pipeline))
    if family is None:
        raise UserError(f"tune: {class_of(pipeline).__name__} cannot be tuned yet; {tuned_families()} can")
    index = configuration(pipeline)
    if not any(index.get(name, [None])[0] for name in ("unet", "transformer")):
        raise UserError(f"model: {pipeline} has neither a unet nor a transformer to tune")
    pipe = load(pipeline, precision(), **{name: None for name in NOT_NEEDED if name in index})
    texts = [str(one.candidate.prompt.content) for one in chosen]
    different = [*dict.fromkeys(text for text in texts if text != family.null), family.null]
    embedded = family.embed(pipe, different, guided=False)
    return Lesson(
        latents=encode(pipe.vae, [one.candidate.output for one in chosen]),
        rows=[different.index(text) for text in texts],
        null=different.index(family.null),
        conditions={name: tensor.clone() for name, tensor in embedded.items()},
        factor=2 ** (len(pipe.vae.config.block_out_channels) - 1),
        objective=objective_of(pipe.scheduler.config, snr_gamma),
        family=family,
        identity=tuple(f"{one.candidate.output.sha256} {text}" for one, text in zip(chosen, texts, strict=True)),
    )


@torch.inference_mode()
def encode(vae: Any, pictures: Sequence[Any]) -> list[torch.Tensor]:
    """The latents of each picture, C H W in float32 on the CPU, scaled as the denoiser sees them."""
    processor = VaeImageProcessor(vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1))
    shift, scale = getattr(vae.config, "shift_factor", None) or 0.0, vae.config.scaling_factor
    latents: list[torch.Tensor] = [torch.empty(0)] * len(pictures)
    sizes = [torch.empty(picture.height, picture.width, device="meta") for picture in pictures]
    for rows in alike(sizes, range(len(pictures)), ENCODED_AT_ONCE):
        pixels = processor.preprocess([pictures[row].image for row in rows]).to(vae.device, vae.dtype)
        found_BCHW = (vae.encode(pixels).latent_dist.mode() - shift) * scale
        for row, found_CHW in zip(rows, found_BCHW.float().cpu(), strict=True):
            latents[row] = found_CHW.clone()
    return latents


def alike(tensors: Sequence[torch.Tensor], rows: Sequence[int], at_once: int) -> list[list[int]]:
    """``rows`` in groups of at most ``at_once`` whose tensors have one shape, so that they stack."""
    groups: dict[torch.Size, list[list[int]]] = {}
    for row in rows:
        of_shape = groups.setdefault(tensors[row].shape, [])
        if not of_shape or len(of_shape[-1]) == at_once:
            of_shape.append([])
        of_shape[-1].append(row)
    return [group for of_shape in groups.values() for group in of_shape]


def _in_order(file: Path) -> None:
    """The same adapter in the same bytes: safetensors writes the metadata of a file in any order."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # what follows stays aligned
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def adapter_metadata(denoiser: Any, pipeline: str) -> dict[str, Any]:
    """The adapter's configuration as JSON has it, with its base, which it finds from any working directory."""
    config = denoiser.peft_config["default"].to_dict()
    base = str(Path(pipeline).resolve()) if Path(pipeline).is_dir() else pipeline
    in_order = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return in_order | {"base_model_name_or_path": base}
