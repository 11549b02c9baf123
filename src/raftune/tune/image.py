"""The image learner: a pipeline's UNet or transformer, or a LoRA adapter of it, fine-tuned on the chosen pictures."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.embeddings import LabelEmbedding

from .. import files
from ..errors import UserError
from ..pipelines import (
    INDEX,
    LORA,
    attach,
    class_of,
    configuration,
    fuse,
    load_denoiser,
    opened,
    precision,
    scheduler_config,
    silent,
)
from ..resident import resident
from ..types import Policy, Scored, digest, seed_of
from .lesson import Lesson, alike, checked_family, prepare
from .lora import Lora
from .objective import objective_of
from .session import Options, Session

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, kw_only=True)
class ImageLearner(Options):
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

    steps: int = 100
    max_epochs: int = 10
    batch_rows: int | None = None
    snr_gamma: float | None = 5.0
    caption_dropout: float = 0.0
    lora: Lora | None = field(default_factory=lambda: Lora(alpha=16))

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

    def check(self, policy: Policy) -> None:
        """Before hours are spent: can this policy be tuned in this way? UserError if not."""
        resident.free()
        pipeline, adapter = opened(policy)
        checked_family(pipeline)
        objective_of(scheduler_config(pipeline), self.snr_gamma)
        name, denoiser = load_denoiser(pipeline, precision() if self.lora else torch.float32)
        self._make_trainable(denoiser, name, pipeline, adapter)

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
            with session.autocast():
                answer_BCHW = lesson.family.predict(
                    session.prepared, task.noisy_BCHW, task.timesteps_B, conditions, lesson.factor
                )
            loss += session.backward(task.loss(answer_BCHW.float()) / len(step))
        return loss

    def _make_trainable(self, denoiser: Any, name: str, pipeline: str, adapter: str | None) -> None:
        """All of it; or an adapter: the policy's own to go on with, or a new one."""
        if self.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        for module in denoiser.modules():
            if isinstance(module, LabelEmbedding):  # drops labels from the global generator; ours is caption_dropout
                module.dropout_prob = 0.0
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
            own = (had.r, had.lora_alpha, had.lora_dropout)
            wanted = set(self.lora.target_modules or had.target_modules)
            if own != (self.lora.r, self.lora.alpha, self.lora.dropout) or wanted != set(had.target_modules):
                raise UserError(
                    f"tune.lora: {adapter} is an adapter with r={had.r}, alpha={had.lora_alpha}, dropout="
                    f"{had.lora_dropout} of {', '.join(sorted(had.target_modules))}; set these, or start from its base "
                    f"{pipeline}"
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
            # All other parts, so that the folder opens by itself, wherever it goes
            shutil.copy(Path(folder) / INDEX, part)
            for other in configuration(pipeline):
                if other != name and (Path(folder) / other).is_dir():
                    shutil.copytree(Path(folder) / other, part / other)
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
