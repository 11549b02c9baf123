"""Prompts, candidates and scored candidates as parquet, one row each, in the columns of docs/architecture.md."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import ledger
from .files import replacing
from .ledger import GROUP, Candidates, Ledger, ScoredTable, StoredPrompts
from .protocols import Codec
from .rows import PART, PROMPT, ROW, TextCodec, candidate_row, layout, opened, prompt_row
from .types import Candidate, Prompt, Scored

__all__ = [
    "TextCodec",
    "columns_of",
    "key_of",
    "read_candidates",
    "read_prompts",
    "read_scored",
    "write_candidates",
    "write_chosen",
    "write_prompts",
    "write_scored",
]


def _write(path: Path, rows: list[dict[str, Any]], schema: dict[str, Any]) -> None:
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(schema.items())))
    with replacing(path) as part:
        pq.write_table(table, part, row_group_size=GROUP, **layout(table.schema))


def columns_of(path: Path) -> list[str]:
    """The names of a table's columns."""
    return opened(path, ()).schema_arrow.names


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    _write(path, [prompt_row(prompt) for prompt in prompts], PROMPT)


def read_prompts(path: Path) -> list[Prompt]:
    return list(StoredPrompts(path))


def read_candidates(path: Path, codec: Codec) -> list[Candidate]:
    return list(Candidates([path], codec))


def write_candidates(path: Path, candidates: Sequence[Candidate], codec: Codec) -> None:
    rows = [candidate_row(candidate, codec, path.parent) for candidate in candidates]
    _write(path, rows, {**ROW, **codec.schema})


def write_scored(
    path: Path, scored: Sequence[Scored], codec: Codec, chosen: Collection[tuple[str, int]] | None = None
) -> None:
    """``chosen`` holds (prompt id, index) of what was chosen; None leaves the column empty: not decided yet."""
    names = {PART + name: pa.float64() for one in scored[:1] for name in one.parts}
    rows = [
        {
            **candidate_row(one.candidate, codec, path.parent),
            "reward": one.reward,
            **{PART + name: value for name, value in one.parts.items()},
            "chosen": None if chosen is None else key_of(one) in chosen,
        }
        for one in scored
    ]
    _write(path, rows, {**ROW, **codec.schema, "reward": pa.float64(), **names, "chosen": pa.bool_()})


def write_chosen(path: Path, chosen: Sequence[Scored], codec: Codec) -> None:
    """What a rule chose, in a stream where it was not read."""
    if isinstance(chosen, Ledger | ScoredTable):
        ledger.write(path, chosen, np.ones(len(chosen), bool))
    else:
        write_scored(path, chosen, codec, {key_of(one) for one in chosen})


def read_scored(path: Path, codec: Codec) -> list[Scored]:
    return list(ScoredTable([path], codec))


def key_of(one: Scored) -> tuple[str, int]:
    """What names a candidate within its round."""
    return one.candidate.prompt.id, one.candidate.index
