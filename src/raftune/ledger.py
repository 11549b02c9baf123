"""Candidates and scored candidates on disk, as sequences that are decoded while they are iterated.

A round is as long as the disk allows: of its outputs one batch is in memory at a time, of its numbers (whose, which,
reward) all.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .columns import Array, Columns, Keys, keys_of
from .errors import UserError
from .files import replacing
from .protocols import Codec
from .rows import PART, ROW, Prompts, candidate_of, candidate_row, layout, opened, prompt_of, rows_of
from .stored import Stored
from .types import Candidate, Prompt, Scored

GROUP = 1 << 15  # rows that lie together in a file of ours, whatever they were read from
NEEDED = ("prompt_id", "prompt", "index", "output")


class StoredPrompts(Stored[Prompt]):
    """The prompts of a table."""

    def __init__(self, path: Path) -> None:
        super().__init__([path], ["prompt_id", "prompt"])

    def decode(self, row: dict[str, Any], folder: Path) -> Prompt:
        return prompt_of(row)


class Candidates(Stored[Candidate]):
    """The candidates of some tables."""

    def __init__(self, paths: Sequence[Path], codec: Codec, needed: Collection[str] = NEEDED) -> None:
        super().__init__(paths, needed)
        self.codec = codec
        self._prompts = Prompts()

    def decode(self, row: dict[str, Any], folder: Path) -> Candidate:
        return candidate_of(row, self.codec, folder, self._prompts)

    @property
    def keys(self) -> Keys:
        """Whose they are, and which of theirs."""
        index = [floats_of(batch.column("index")).astype(np.int32) for _, batch in self.batches(["index"], GROUP)]
        prompt, ids = self._coded("prompt_id")
        return Keys(prompt, np.concatenate([np.empty(0, np.int32), *index]), ids)

    @property
    def sources(self) -> tuple[Array, list[str]]:
        """The number of each one's source, and the names of the sources."""
        numbers, names = self._coded("source", "policy")
        return numbers, names.to_pylist()

    def _coded(self, column: str, default: str = "") -> tuple[Array, pa.Array]:
        """Numbers for the values of a column of strings, and the values, in order of first appearance."""
        found = []
        for _, batch in self.batches([column], GROUP):
            there = column in batch.schema.names
            values = batch.column(column).cast(pa.string()) if there else pa.nulls(batch.num_rows, pa.string())
            found.append(values.fill_null(default).dictionary_encode())
        coded = pa.chunked_array(found, pa.dictionary(pa.int32(), pa.string())).unify_dictionaries()
        numbers = [np.empty(0, np.int32), *(chunk.indices.to_numpy() for chunk in coded.chunks)]
        return np.concatenate(numbers), coded.chunk(0).dictionary if found else pa.array([], pa.string())


class ScoredTable(Stored[Scored]):
    """The scored candidates of some tables. Their numbers are read when they are asked for, and not kept. NaN is not
    scored; UserError where a reward is infinite."""

    def __init__(self, paths: Sequence[Path], codec: Codec) -> None:
        super().__init__(paths, (*NEEDED, "reward"))
        self.codec = codec
        self.candidates = Candidates(paths, codec)

    def decode(self, row: dict[str, Any], folder: Path) -> Scored:
        parts = {name.removeprefix(PART): _optional(row[name]) for name in row if name.startswith(PART)}
        return Scored(self.candidates.decode(row, folder), _finite(_optional(row["reward"]), row), parts)

    def take(self, rows: Array) -> Self:
        some = super().take(rows)
        some.candidates = self.candidates.take(rows)
        return some

    @property
    def columns(self) -> Columns:
        fields = [name for path in self.paths for name in opened(path, ()).schema_arrow.names]
        names = list(dict.fromkeys(name for name in fields if name.startswith(PART)))
        found = {name: np.full(len(self), np.nan) for name in ("reward", *names)}
        start = 0
        for _, batch in self.batches(list(found), GROUP):
            for name in found.keys() & set(batch.schema.names):
                found[name][start : start + batch.num_rows] = floats_of(batch.column(name))
            start += batch.num_rows
        for row in np.flatnonzero(np.isinf(found["reward"]))[:1].tolist():
            self[row]  # says which it is
        parts = {name.removeprefix(PART): found[name] for name in names}
        return Columns(self.candidates.keys, found["reward"], parts)

    @property
    def sources(self) -> tuple[Array, list[str]]:
        return self.candidates.sources

    def skim(self) -> Iterator[Scored]:
        """All of them, their outputs without what they have per token."""
        return self.decoded(lists=False)


class Ledger(Sequence[Scored]):
    """Candidates on disk with numbers that are not yet: their rewards."""

    def __init__(self, candidates: Candidates, columns: Columns) -> None:
        self.candidates = candidates
        self._numbers: Columns | ScoredTable = columns

    @property
    def columns(self) -> Columns:
        return self._numbers if isinstance(self._numbers, Columns) else self._numbers.columns

    def let_go(self, table: ScoredTable) -> None:
        """The numbers lie in this table now: from there they are read when they are asked for."""
        self._numbers = table

    @property
    def sources(self) -> tuple[Array, list[str]]:
        return self.candidates.sources

    def take(self, rows: Array) -> Ledger:
        """Those of these rows, in this order."""
        return Ledger(self.candidates.take(rows), self.columns.take(rows))

    def __len__(self) -> int:
        return len(self.candidates)

    @overload
    def __getitem__(self, at: int) -> Scored: ...
    @overload
    def __getitem__(self, at: slice) -> list[Scored]: ...
    def __getitem__(self, at: int | slice) -> Scored | list[Scored]:
        rows = np.arange(len(self))[at]
        return list(self.take(rows)) if isinstance(at, slice) else next(iter(self.take(np.array([rows]))))

    def __iter__(self) -> Iterator[Scored]:
        return self._with(self.candidates)

    def skim(self) -> Iterator[Scored]:
        """All of them, their outputs without what they have per token."""
        return self._with(self.candidates.decoded(lists=False))

    def _with(self, candidates: Iterable[Candidate]) -> Iterator[Scored]:
        columns = self.columns
        for row, candidate in enumerate(candidates):
            parts = {name: _optional(part[row]) for name, part in columns.parts.items()}
            yield Scored(candidate, _optional(columns.reward[row]), parts)

    def which(self, chosen: Sequence[Scored]) -> Array:
        """N booleans: those that are ``chosen``; what is not a part of this ledger is told by prompt and index."""
        if isinstance(chosen, Ledger) and chosen.candidates.pieces is self.candidates.pieces:
            return self.candidates.which(chosen.candidates)
        keys, wanted = self.columns.keys, keys_of([one.candidate for one in chosen])
        ids = {name: number for number, name in enumerate(wanted.ids)}
        theirs = np.array([ids.get(keys.id_of(number), -1) for number in range(len(keys.ids))], np.int64)
        return np.isin((theirs[keys.prompt] << 32) + keys.index, (wanted.prompt.astype(np.int64) << 32) + wanted.index)


def _optional(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)


def _finite(reward: float | None, row: dict[str, Any]) -> float | None:
    if reward is not None and math.isinf(reward):
        raise UserError(f"candidate {row['index']} of prompt {row['prompt_id']!r}: the reward is {reward}")
    return reward


def floats_of(column: pa.Array) -> Array:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def write(path: Path, ledger: Ledger | ScoredTable, chosen: Array | None) -> None:
    """The same table as ``write_scored`` writes, in a stream. ``chosen``: N booleans, or None: not decided yet."""
    columns = ledger.columns
    names = {PART + name: pa.float64() for name in columns.parts}
    plain = pa.schema(list({**ROW, **ledger.candidates.codec.schema}.items()))
    schema = pa.schema([*plain, ("reward", pa.float64()), *names.items(), ("chosen", pa.bool_())])
    with replacing(path) as part, pq.ParquetWriter(part, schema, **layout(schema)) as writer:
        for group in _grouped(_tables(ledger.candidates, columns, chosen, plain, path.parent)):
            writer.write_table(group.cast(schema))


def _tables(
    candidates: Candidates, columns: Columns, chosen: Array | None, plain: pa.Schema, folder: Path
) -> Iterator[pa.Table]:
    start = 0
    for source, batch in candidates.batches():
        rows = slice(start, start := start + batch.num_rows)
        table = _moved(batch, plain, candidates.codec, source.parent, folder)
        numbers = {"reward": columns.reward, **{PART + name: part for name, part in columns.parts.items()}}
        for name, values in numbers.items():
            table = table.append_column(name, pa.array(values[rows], pa.float64(), from_pandas=True))
        decided = pa.nulls(batch.num_rows, pa.bool_()) if chosen is None else pa.array(chosen[rows])
        yield table.append_column("chosen", decided)


def _moved(batch: pa.RecordBatch, schema: pa.Schema, codec: Codec, source: Path, folder: Path) -> pa.Table:
    """A table's rows as they will lie in another folder: as they are, where these very columns mean the same there."""
    if getattr(codec, "portable", False) and all(batch.schema.get_field_index(name) >= 0 for name in schema.names):
        table = pa.Table.from_batches([batch]).select(schema.names)
        if all(table.schema.field(name).type == schema.field(name).type for name in schema.names):
            return table
    prompts = Prompts()
    candidates = [candidate_of(row, codec, source, prompts) for row in rows_of(batch)]
    return pa.Table.from_pylist([candidate_row(one, codec, folder) for one in candidates], schema=schema)


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, so many at a time that the file does not show how they came."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(map(len, held)) >= GROUP:
            whole = pa.concat_tables(held)
            yield whole.slice(0, GROUP)
            held = [whole.slice(GROUP)]
    if sum(map(len, held)):
        yield pa.concat_tables(held)
