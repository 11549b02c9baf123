"""Picture: a sampled picture, without loss, and how it lies on disk: PNG files beside the table, named by content.

No torch; Pillow is imported when a picture is made or looked at.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .errors import UserError
from .files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = "pictures"


@dataclass(frozen=True)
class Picture:
    """A sampled picture: the sha256 of its PNG, its size in pixels, and where it lies (``path``) or is held (``data``).

    ``flagged``: the pipeline's own safety checker replaced it by a black one. Such a candidate is kept, and no reward
    of ours scores it, so it is never chosen.
    """

    sha256: str
    width: int
    height: int
    flagged: bool = False
    path: Path | None = field(default=None, compare=False)
    data: bytes | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, image: Image, flagged: bool = False) -> Picture:
        """A PIL picture as the PNG that will lie on disk."""
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "png", compress_level=1)  # a quarter of the default's time, 10 % larger
        data = stream.getvalue()
        return cls(hashlib.sha256(data).hexdigest(), image.width, image.height, flagged, None, data)

    @property
    def png(self) -> bytes:
        """The file's bytes. UserError if it is gone or no longer what was sampled."""
        if self.data is not None:
            return self.data
        if self.path is None:
            raise ValueError("a picture needs a path or its data")
        mend = "in a run, delete the table that names it and run again"
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); {mend}") from None
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UserError(f"{self.path}: is not the picture that was sampled (its sha256 differs); {mend}")
        return data

    @property
    def image(self) -> Image:
        """The picture for a reward or a person: PIL, RGB."""
        import PIL.Image

        try:
            return PIL.Image.open(io.BytesIO(self.png)).convert("RGB")
        except OSError as error:
            raise UserError(f"{self.path or self.sha256}: cannot be decoded ({error})") from None

    def __str__(self) -> str:
        return str(self.path or f"{self.width}×{self.height} picture {self.sha256[:8]}")


class PictureCodec:
    """One PNG a picture in the folder ``pictures`` beside the table; the column ``output`` is the path from there."""

    @property
    def schema(self) -> Mapping[str, Any]:
        return {
            "output": pa.string(),
            "sha256": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "flagged": pa.bool_(),
        }

    def encode(self, output: Picture, folder: Path) -> dict[str, Any]:
        path = output.path
        if path is None:
            path = folder / FOLDER / f"{output.sha256[:32]}.png"
            data = output.png
            if not path.exists() or path.read_bytes() != data:  # the same picture twice is one file
                with replacing(path) as part:
                    part.write_bytes(data)
        return {
            "output": Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix(),
            "sha256": output.sha256,
            "width": output.width,
            "height": output.height,
            "flagged": output.flagged,
        }

    def decode(self, row: Mapping[str, Any], folder: Path) -> Picture:
        if row["output"] is None or row.get("sha256") is None:
            raise UserError(f"candidate {row.get('index')} of prompt {row.get('prompt_id')!r} has no picture")
        return Picture(row["sha256"], row["width"], row["height"], bool(row.get("flagged")), folder / row["output"])
