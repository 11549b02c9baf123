"""What a round learns from, as the denoiser sees it: latents of the chosen pictures, embeddings of their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor

from ..errors import UserError
from ..families import Conditions, Family, family_of, tuned_families
from ..pipelines import DENOISERS, class_of, configuration, denoiser_class, load, precision, silent
from ..types import Scored
from .objective import Objective, objective_of

ENCODED_AT_ONCE = 4  # pictures of 512 × 512; more of smaller ones
NOT_NEEDED = (*DENOISERS, "safety_checker", "feature_extractor", "image_encoder")  # to encode a lesson


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


def prepare(pipeline: str, chosen: Sequence[Scored], snr_gamma: float | None) -> Lesson:
    """Pictures → latents, prompts → embeddings, once each; VAE and text encoders are gone when this returns."""
    family = checked_family(pipeline)
    denoiser_class(pipeline)  # before anything is encoded
    index = configuration(pipeline)
    pipe = load(pipeline, precision(), **{name: None for name in NOT_NEEDED if name in index})
    texts = [str(one.candidate.prompt.content) for one in chosen]
    different = [*dict.fromkeys(text for text in texts if text != family.null), family.null]
    with silent():
        embedded = family.embed(pipe, different, guided=False)
        vae = pipe.vae if pipe.vae.dtype == torch.float32 else pipe.vae.to(torch.float32)
    conditions = {name: tensor.clone().cpu() for name, tensor in embedded.items()}
    if getattr(pipe.config, "force_zeros_for_empty_prompt", False):  # as SDXL draws without a prompt
        for tensor in conditions.values():
            tensor[different.index(family.null)] = 0
    return Lesson(
        latents=encode(vae, [one.candidate.output for one in chosen]),
        rows=[different.index(text) for text in texts],
        null=different.index(family.null),
        conditions=conditions,
        factor=2 ** (len(vae.config.block_out_channels) - 1),
        objective=objective_of(pipe.scheduler.config, snr_gamma),
        family=family,
        identity=tuple(f"{one.candidate.output.sha256} {text}" for one, text in zip(chosen, texts, strict=True)),
    )


def checked_family(pipeline: str) -> Family:
    """The pipeline's family; UserError where there is none."""
    family = family_of(class_of(pipeline))
    if family is None:
        raise UserError(f"tune: {class_of(pipeline).__name__} cannot be tuned yet; {tuned_families()} can")
    return family


@torch.inference_mode()
def encode(vae: Any, pictures: Sequence[Any]) -> list[torch.Tensor]:
    """The latents of each picture, C H W in float32 on the CPU, scaled as the denoiser sees them."""
    processor = VaeImageProcessor(vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1))
    shift, scale = getattr(vae.config, "shift_factor", None) or 0.0, vae.config.scaling_factor
    latents: list[torch.Tensor] = [torch.empty(0)] * len(pictures)
    sizes = [torch.empty(picture.height, picture.width, device="meta") for picture in pictures]
    largest = max(picture.height * picture.width for picture in pictures)
    for rows in alike(sizes, range(len(pictures)), max(1, ENCODED_AT_ONCE * 512 * 512 // max(largest, 256 * 256))):
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
