"""Pictures on disk: what was sampled comes back to the last pixel, and what is damaged is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from raftune import table
from raftune.errors import UserError
from raftune.picture import Picture, PictureCodec
from raftune.types import Candidate, Prompt, Scored


def noise(seed: int, width: int = 9, height: int = 7) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def candidate(seed: int, index: int = 0, flagged: bool = False) -> Candidate:
    return Candidate(Prompt("p0", "a red seven", {"label": "red seven"}), index, Picture.of(noise(seed), flagged))


def test_pictures_come_back_to_the_pixel(tmp_path: Path) -> None:
    file = tmp_path / "candidates" / "00000.parquet"
    written = [candidate(0), candidate(1, 1, flagged=True), candidate(0, 2)]
    table.write_candidates(file, written, PictureCodec())
    read = table.read_candidates(file, PictureCodec())
    assert read == written
    assert [c.output.flagged for c in read] == [False, True, False]
    for one, seed in zip(read, (0, 1, 0), strict=True):
        assert np.array_equal(np.asarray(one.output.image), np.asarray(noise(seed)))
        assert (one.output.width, one.output.height) == (9, 7)
    assert len(list(tmp_path.rglob("*.png"))) == 2  # the same picture twice is one file


def test_later_tables_point_at_the_same_files(tmp_path: Path) -> None:
    file = tmp_path / "candidates" / "00000.parquet"
    table.write_candidates(file, [candidate(0)], PictureCodec())
    read = table.read_candidates(file, PictureCodec())
    table.write_scored(tmp_path / "scored.parquet", [Scored(read[0], 1.0, {"r": 1.0})], PictureCodec())
    again = table.read_scored(tmp_path / "scored.parquet", PictureCodec())
    assert np.array_equal(np.asarray(again[0].candidate.output.image), np.asarray(noise(0)))
    assert len(list(tmp_path.rglob("*.png"))) == 1
    moved = tmp_path.with_name(tmp_path.name + "-moved")  # a run that was moved still finds them
    tmp_path.rename(moved)
    again = table.read_scored(moved / "scored.parquet", PictureCodec())
    assert again[0].candidate.output.image.size == (9, 7)


def test_a_missing_a_damaged_and_another_picture_are_named(tmp_path: Path) -> None:
    file = tmp_path / "c.parquet"
    table.write_candidates(file, [candidate(0)], PictureCodec())
    (png,) = tmp_path.rglob("*.png")
    whole = png.read_bytes()
    for damaged in (whole[: len(whole) // 2], Picture.of(noise(5)).png, b""):
        png.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{png.name}.*sha256"):
            _ = table.read_candidates(file, PictureCodec())[0].output.image
    png.unlink()
    with pytest.raises(UserError, match=f"{png.name}.*No such file"):
        _ = table.read_candidates(file, PictureCodec())[0].output.image


def test_what_is_no_picture_cannot_be_decoded(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "x.png"
    path.write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"x\.png: cannot be decoded"):
        _ = Picture(hashlib.sha256(b"not a picture").hexdigest(), 1, 1, path=path).image


def test_a_table_of_texts_has_no_pictures(tmp_path: Path) -> None:
    from raftune.types import Text

    table.write_candidates(tmp_path / "t.parquet", [Candidate(Prompt("p0", "x"), 0, Text("y"))], table.TextCodec())
    with pytest.raises(UserError, match="has no picture"):
        table.read_candidates(tmp_path / "t.parquet", PictureCodec())
