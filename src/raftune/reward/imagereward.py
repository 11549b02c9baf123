"""ImageReward (Xu et al. 2023, arXiv 2304.05977): human preference for a picture given its prompt, about -2 … 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError
from ..models import device
from ..resident import resident
from ..types import Candidate
from .pictures import in_batches, text_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageReward:
    """Needs the package image-reward, whose model is no transformers one. ``checkpoint``: what its ``load`` takes."""

    checkpoint: str = "ImageReward-v1.0"
    name: str = "imagereward"

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        texts = [text_of(self.name, candidate) for candidate in candidates]
        if not texts:
            return []
        model = resident.get(self.checkpoint, "imagereward", lambda: _load(self.name, self.checkpoint))

        @torch.inference_mode()
        def score(some: Sequence[Candidate], images: Sequence[Image]) -> list[float]:
            return [
                model.score(text_of(self.name, candidate), image) for candidate, image in zip(some, images, strict=True)
            ]

        return in_batches(self.name, candidates, score, "imagereward")


def _load(name: str, checkpoint: str) -> Any:
    try:
        import ImageReward as package  # type: ignore[import-not-found]  # noqa: N813
    except ImportError as error:
        raise UserError(
            f"reward {name!r} needs the package image-reward, which does not import ({error}); pip install image-reward"
        ) from error
    return package.load(checkpoint, device=str(device()))
