"""The image sampler: K pictures of each prompt from a diffusers pipeline."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import interrupt, progress
from ..errors import UserError
from ..families import Family, family_of
from ..picture import Picture
from ..pipelines import resident_pipeline, silent
from ..types import Candidate, Policy, Prompt, seed_of

log = logging.getLogger("raftune")
ROWS = {"cpu": 16, "mps": 4, "cuda": 16}  # pictures of AREA pixels denoised at once
AREA = 512 * 512
Row = tuple[int, int]  # of a prompt among the prompts, of a candidate among its K


@dataclass(frozen=True)
class ImageSampler:
    """Samples with the pipeline's own scheduler and settings where these are None.

    A prompt goes through the text encoders once, whatever K is. Each picture has a generator of its own, on the CPU, so
    it does not depend on the batch it was drawn in. A picture that the pipeline's safety checker replaced is kept and
    ``flagged``.

    ``height``, ``width``: pixels, multiples of what the VAE makes of one latent. ``steps``: of the scheduler.
    ``guidance``: classifier-free guidance scale. ``scheduler``: a diffusers class that fits the pipeline's own.
    ``batch_rows``: pictures denoised at once (None: by their size).
    """

    height: int | None = None
    width: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    scheduler: str | None = None
    batch_rows: int | None = None
    source: str = "policy"

    def sample(self, policy: Policy, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        """``k`` candidates of each prompt, in order; see :class:`raftune.protocols.Sampler`."""
        if k < 1:
            raise UserError(f"sample.k: {k} candidates per prompt; at least 1 is needed")
        if not prompts:
            return []
        texts = [text_of(prompt) for prompt in prompts]
        pipe = resident_pipeline(policy)
        own = pipe.scheduler
        pipe.scheduler = self._scheduler(pipe)
        try:
            drawn = self._draw(pipe, prompts, texts, k, seed)
        finally:
            pipe.scheduler = own
        rows = [(row, index) for row in range(len(prompts)) for index in range(k)]
        return [Candidate(prompts[row], index, drawn[row, index], self.source) for row, index in rows]

    def planned(self, policy: Policy, lengths: Sequence[int], k: int) -> list[list[Row]]:
        """The batches of (prompt, index) in which ``k`` pictures of so many prompts are denoised."""
        pipe = resident_pipeline(policy)
        at_once = self.batch_rows or rows_of(pipe, self._call(pipe))
        rows = [(row, index) for row in range(len(lengths)) for index in range(k)]
        return [rows[at : at + at_once] for at in range(0, len(rows), at_once)]

    def passes(self, policy: Policy) -> int:
        """Steps of the scheduler that a picture takes."""
        call = inspect.signature(resident_pipeline(policy).__call__).parameters
        return self.steps or call["num_inference_steps"].default

    def _draw(
        self, pipe: Any, prompts: Sequence[Prompt], texts: Sequence[str], k: int, seed: tuple[object, ...]
    ) -> dict[Row, Picture]:
        call = self._call(pipe)
        inputs_of = self._inputs(pipe, texts, call)
        rows = [(row, index) for row in range(len(prompts)) for index in range(k)]
        at_once = self.batch_rows or rows_of(pipe, call)
        drawn: dict[Row, Picture] = {}
        with progress.bar("denoise", len(rows)) as advance, silent():
            for at in range(0, len(rows), at_once):
                interrupt.check()
                batch = rows[at : at + at_once]
                generators = [
                    torch.Generator().manual_seed(seed_of(*seed, prompts[row].id, index)) for row, index in batch
                ]
                try:
                    output = pipe(**inputs_of([row for row, _ in batch]), generator=generators, **call)
                except torch.OutOfMemoryError:
                    raise UserError(
                        f"sample: {len(batch)} pictures at once do not fit; lower sample.batch_rows"
                    ) from None
                except ValueError as error:  # the pipeline's own checks
                    raise UserError(f"sample: {type(pipe).__name__}: {str(error).strip().splitlines()[0]}") from error
                flags = getattr(output, "nsfw_content_detected", None) or [False] * len(batch)
                for place, image, flag in zip(batch, output.images, flags, strict=True):
                    drawn[place] = Picture.of(image, bool(flag))
                advance(len(batch))
        return drawn

    def _call(self, pipe: Any) -> dict[str, Any]:
        """The keywords of the pipeline's call, checked."""
        asked = {
            "height": self.height,
            "width": self.width,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
        }
        keys = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
        call = {name: value for name, value in asked.items() if value is not None}
        takes = inspect.signature(pipe.__call__).parameters
        for name in call:
            if name not in takes:
                raise UserError(f"sample.{keys.get(name, name)}: {type(pipe).__name__} does not take it")
        if self.negative_prompt is not None and not guided(pipe, call):
            raise UserError("sample.negative_prompt: does nothing without guidance; set sample.guidance above 1")
        unit = multiple_of(pipe)
        for name in ("height", "width"):
            if call.get(name, unit) % unit:
                nearest = max(unit, round(call[name] / unit) * unit)
                raise UserError(
                    f"sample.{name}: {call[name]} is not a multiple of {unit}, as {type(pipe).__name__} needs; "
                    f"{nearest} is"
                )
        return {**call, "output_type": "pil"}

    def _inputs(self, pipe: Any, texts: Sequence[str], call: dict[str, Any]) -> Callable[[list[int]], dict[str, Any]]:
        """From rows of prompts to what stands for them in the pipeline's call."""
        family = family_of(type(pipe))
        if family is not None:
            with silent():
                conditions = family.embed(pipe, texts, guided(pipe, call), self.negative_prompt)
            return lambda rows: family.rows(conditions, rows)
        if "prompt" not in inspect.signature(pipe.__call__).parameters:
            raise UserError(f"model: {type(pipe).__name__} takes no prompt; it cannot be asked for anything")
        log.info("%s: each batch encodes its own prompts, as no shared embeddings are known", type(pipe).__name__)
        negative = [self.negative_prompt] if self.negative_prompt is not None else []
        return lambda rows: {
            "prompt": [texts[row] for row in rows],
            **({"negative_prompt": negative * len(rows)} if negative else {}),
        }

    def _scheduler(self, pipe: Any) -> Any:
        if self.scheduler is None:
            return pipe.scheduler
        fitting = {one.__name__: one for one in (*pipe.scheduler.compatibles, type(pipe.scheduler))}
        if self.scheduler not in fitting:
            raise UserError(
                f"sample.scheduler: {self.scheduler!r} does not fit; use one of {', '.join(sorted(fitting))}"
            )
        try:
            return fitting[self.scheduler].from_config(pipe.scheduler.config)
        except (ImportError, ValueError) as error:
            raise UserError(f"sample.scheduler: {self.scheduler}: {str(error).strip().splitlines()[0]}") from error


def guided(pipe: Any, call: dict[str, Any]) -> bool:
    """Whether the pipeline is to draw with classifier-free guidance."""
    parameter = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
    return call.get("guidance_scale", parameter.default if parameter else 1.0) > 1


def rows_of(pipe: Any, call: dict[str, Any]) -> int:
    """Pictures at once, by their size: the device's number at 512 × 512."""
    config = getattr(getattr(pipe, "unet", None) or getattr(pipe, "transformer", None), "config", {})
    latents = getattr(pipe, "default_sample_size", None) or config.get("sample_size")
    side = (latents if isinstance(latents, int) else 64) * getattr(pipe, "vae_scale_factor", 8)
    area = call.get("height", side) * call.get("width", side)
    return min(256, max(1, ROWS[pipe.device.type] * AREA // max(1, area)))


def text_of(prompt: Prompt) -> str:
    """A prompt of pictures is a text."""
    if not isinstance(prompt.content, str):
        raise UserError(f"prompt {prompt.id!r} is a chat; pictures are drawn from texts")
    return prompt.content


def multiple_of(pipe: Any) -> int:
    """Pixels that a picture's sides must be multiples of: the VAE's factor times what the denoiser reads as one."""
    family = family_of(type(pipe)) or Family()
    denoiser = getattr(pipe, "transformer", None)
    patch = (getattr(denoiser.config, "patch_size", None) or 1) if denoiser is not None else 1
    return getattr(pipe, "vae_scale_factor", 8) * patch * family.patch
