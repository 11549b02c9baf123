"""Captions of a text-to-image dataset, as prompts. Its pictures are not looked at. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError

METADATA = {"metadata.jsonl": "json", "metadata.csv": "csv", "metadata.parquet": "parquet"}  # of an imagefolder


def captions(
    column: str,
    dataset: str | None,
    config: str | None = None,
    folder: str | None = None,
    cache: str | None = None,
    most: int | None = None,
    seed: int | None = None,
) -> list[dict[str, Any]]:
    """The rows of ``dataset`` (a hub id or folder; its split ``train``), or of the metadata in ``folder``, without
    pictures; a row with several captions in ``column`` becomes several. ``most`` rows are drawn by ``seed``."""
    import datasets

    if dataset is not None:
        where, loaded = dataset, _loaded(dataset, config, data_dir=folder, cache_dir=cache)
    else:
        where = str(folder)
        kind, found = _metadata(Path(where))
        loaded = _loaded(kind, None, data_files={"train": found}, cache_dir=cache)
    if "train" not in loaded:
        raise UserError(f"{where}: has no split `train`; it has {', '.join(loaded)}")
    table = loaded["train"]
    if column not in table.column_names:
        raise UserError(f"--caption_column: {where} has no column {column!r}; it has {', '.join(table.column_names)}")
    media = (datasets.Image, datasets.Video, datasets.Audio)
    table = table.remove_columns([name for name, kind in table.features.items() if isinstance(kind, media)])
    if most is not None:
        table = table.shuffle(seed=seed).select(range(min(most, len(table))))
    return [one for row in table for one in _each(dict(row), column, where)]


def _loaded(name: str, config: str | None, **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, **options)
    except Exception as error:  # the Hub has many ways to say no
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"dataset: {name!r} does not load: {line}") from error


def _metadata(folder: Path) -> tuple[str, list[str]]:
    """The files that hold a folder's captions, and their kind."""
    if not folder.is_dir():
        raise UserError(f"--train_data_dir: {folder} is not a folder")
    for name, kind in METADATA.items():
        if found := sorted(folder.rglob(name)):
            return kind, [str(path) for path in found]
    raise UserError(f"--train_data_dir: {folder} holds none of {', '.join(METADATA)}, which name the captions")


def _each(row: dict[str, Any], column: str, where: str) -> Iterator[dict[str, Any]]:
    """The row, once for each of its captions."""
    told = row[column]
    for caption in told if isinstance(told, list) else [told]:
        if caption is not None and not isinstance(caption, str):
            kind = type(caption).__name__
            raise UserError(f"--caption_column: {where}: {column!r} holds a text or a list of texts, not {kind}")
        yield {**row, column: caption}
