"""What the families of diffusion pipelines do differently: how prompts become tensors, and how a noised latent is read.

Shape suffixes: N prompts, B rows of a batch, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .errors import UserError

Conditions = dict[str, torch.Tensor]
"""What the pipeline's ``__call__`` takes instead of prompts; row n belongs to prompt n."""

ENCODED_AT_ONCE = 32


@dataclass(frozen=True)
class Family:
    """A pipeline whose ``encode_prompt`` returns ``returns`` (None: not needed)."""

    returns: tuple[str | None, ...] = ("prompt_embeds", "negative_prompt_embeds")
    null: str = ""  # the prompt that says nothing
    patch: int = 1  # latents a side that the pipeline packs into one, besides its denoiser's patches

    def embed(self, pipe: Any, texts: Sequence[str], guided: bool, negative: str | None = None) -> Conditions:
        """The prompts through the text encoders, once each."""
        takes = inspect.signature(pipe.encode_prompt).parameters
        if negative is not None and "negative_prompt" not in takes:
            raise UserError(f"sample.negative_prompt: {type(pipe).__name__} takes none")
        encoded: list[Conditions] = []
        for at in range(0, len(texts), ENCODED_AT_ONCE):
            some = list(texts[at : at + ENCODED_AT_ONCE])
            wanted = {
                "prompt": some,
                "prompt_2": None,
                "prompt_3": None,
                "device": pipe.device,
                "num_images_per_prompt": 1,
                "do_classifier_free_guidance": guided,
                "negative_prompt": None if negative is None else [negative] * len(some),
            }
            with torch.inference_mode():
                tensors = pipe.encode_prompt(**{name: value for name, value in wanted.items() if name in takes})
            named = zip(self.returns, tensors, strict=True)
            encoded.append({name: tensor for name, tensor in named if name is not None and tensor is not None})
        return {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}

    def rows(self, conditions: Conditions, rows: list[int]) -> dict[str, Any]:
        """The prompts at ``rows``, as the pipeline's call takes them."""
        return {name: tensor[rows] for name, tensor in conditions.items()}

    def predict(self, denoiser: Any, noisy_BCHW: Any, timesteps_B: Any, conditions: Conditions, factor: int) -> Any:
        """The denoiser's answer, B C H W. ``factor``: pixels a latent."""
        return denoiser(noisy_BCHW, timesteps_B, conditions["prompt_embeds"], return_dict=False)[0]


@dataclass(frozen=True)
class XL(Family):
    """Stable Diffusion XL: a pooled embedding and the picture's size (told as whole, uncropped pictures)."""

    returns: tuple[str | None, ...] = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )

    def predict(self, denoiser: Any, noisy_BCHW: Any, timesteps_B: Any, conditions: Conditions, factor: int) -> Any:
        height, width = (side * factor for side in noisy_BCHW.shape[-2:])
        sizes = noisy_BCHW.new_tensor([height, width, 0, 0, height, width]).repeat(len(noisy_BCHW), 1)
        added = {"text_embeds": conditions["pooled_prompt_embeds"], "time_ids": sizes}
        text = conditions["prompt_embeds"]
        return denoiser(noisy_BCHW, timesteps_B, text, added_cond_kwargs=added, return_dict=False)[0]


@dataclass(frozen=True)
class SD3(XL):
    """Stable Diffusion 3 and 3.5."""

    def predict(self, denoiser: Any, noisy_BCHW: Any, timesteps_B: Any, conditions: Conditions, factor: int) -> Any:
        return denoiser(
            hidden_states=noisy_BCHW,
            timestep=timesteps_B,
            encoder_hidden_states=conditions["prompt_embeds"],
            pooled_projections=conditions["pooled_prompt_embeds"],
            return_dict=False,
        )[0]


@dataclass(frozen=True)
class Flux(Family):
    """Flux: latents in packs of 2 × 2, positions as numbers, guidance distilled into the model."""

    returns: tuple[str | None, ...] = ("prompt_embeds", "pooled_prompt_embeds", None)
    patch: int = 2
    guidance: float = 3.5  # as the library's example trains it

    def predict(self, denoiser: Any, noisy_BCHW: Any, timesteps_B: Any, conditions: Conditions, factor: int) -> Any:
        B, C, H, W = noisy_BCHW.shape
        packed_BLD = noisy_BCHW.view(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * 4)
        rows, columns = torch.meshgrid(torch.arange(H // 2), torch.arange(W // 2), indexing="ij")
        places_L3 = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).to(noisy_BCHW)
        text = conditions["prompt_embeds"]
        guided = getattr(denoiser.config, "guidance_embeds", False)
        answer_BLD = denoiser(
            hidden_states=packed_BLD,
            timestep=timesteps_B / 1000,
            guidance=noisy_BCHW.new_full((B,), self.guidance) if guided else None,
            pooled_projections=conditions["pooled_prompt_embeds"],
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=places_L3,
            return_dict=False,
        )[0]
        return answer_BLD.view(B, H // 2, W // 2, C, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


@dataclass(frozen=True)
class DiT(Family):
    """Class-conditional: a prompt is the name of a class, or its number."""

    returns: tuple[str | None, ...] = ("class_labels",)
    null: str = "1000"  # the library's own number for no class

    def embed(self, pipe: Any, texts: Sequence[str], guided: bool, negative: str | None = None) -> Conditions:
        if negative is not None:
            raise UserError(f"sample.negative_prompt: {type(pipe).__name__} takes none")
        unknown = [text for text in texts if text not in pipe.labels and not text.isdecimal()]
        if unknown:
            raise UserError(
                f"prompt {unknown[0]!r} is no class of this {type(pipe).__name__}; write a name or a number"
            )
        numbers = [int(text) if text.isdecimal() else pipe.labels[text] for text in texts]
        if pipe.transformer is not None and max(numbers) >= pipe.transformer.config.num_embeds_ada_norm:
            classes = pipe.transformer.config.num_embeds_ada_norm
            raise UserError(f"prompt '{max(numbers)}' is no class of this {type(pipe).__name__}; it has {classes}")
        return {"class_labels": torch.tensor(numbers)}

    def rows(self, conditions: Conditions, rows: list[int]) -> dict[str, Any]:
        return {"class_labels": conditions["class_labels"][rows].tolist()}

    def predict(self, denoiser: Any, noisy_BCHW: Any, timesteps_B: Any, conditions: Conditions, factor: int) -> Any:
        labels = conditions["class_labels"].to(noisy_BCHW.device)
        answer = denoiser(noisy_BCHW, timestep=timesteps_B, class_labels=labels, return_dict=False)[0]
        return answer[:, : noisy_BCHW.shape[1]]  # beyond: the learned variance, which the mean's loss leaves alone


FAMILIES: dict[str, Family] = {  # by name: to import them all would take seconds
    "StableDiffusionPipeline": Family(),
    "StableDiffusionXLPipeline": XL(),
    "StableDiffusion3Pipeline": SD3(),
    "FluxPipeline": Flux(),
    "DiTPipeline": DiT(),
}


def family_of(pipeline: type) -> Family | None:
    """The family of a pipeline class; None for one that can be sampled from by its prompts but not tuned."""
    return next((FAMILIES[one.__name__] for one in pipeline.__mro__ if one.__name__ in FAMILIES), None)


def tuned_families() -> str:
    """What can be tuned, for a message."""
    return ", ".join(FAMILIES)
