"""JPEG size as a reward, as in DDPO (Black et al. 2023, arXiv 2305.13301): cheap and exact. No torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..types import Candidate
from .pictures import in_batches

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class JpegSize:
    """kB (1000 bytes) of the picture as a JPEG of quality 95, as Pillow writes it; ``smaller``: the less the better."""

    smaller: bool
    name: str

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        sign = -1 if self.smaller else 1

        def score(some: Sequence[Candidate], images: Sequence[Image]) -> list[float]:
            return [sign * _bytes(image) / 1000 for image in images]

        return in_batches(self.name, candidates, score, "jpeg")


def _bytes(image: Image) -> int:
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=95)
    return stream.tell()
