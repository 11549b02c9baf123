"""Candidates and scored candidates on disk, as sequences that are decoded while they are iterated.

A round is as long as the disk allows: of its outputs one batch is in memory at a time, of its numbers (whose, which,
reward) all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate, count, groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .columns import Array, Columns, Keys, keys_of
from .errors import UserError
from .files import replacing
from .protocols import Codec
from .rows import PART, ROW, Prompts, candidate_of, candidate_row, layout, opened, readable, rows_of
from .types import Candidate, Scored

T = TypeVar("T")
BATCH = 1 << 13  # rows that are decoded at once
GROUP = 1 << 16  # rows that lie together in a file of ours, whatever they were read from
NEEDED = ("prompt_id", "prompt", "index", "output")


class Piece(NamedTuple):
    """A row group of a file."""

    path: Path
    group: int
    count: int


class Candidates(Sequence[Candidate]):
    """The candidates of some tables, one after the other, or those of ``rows``, in that order.

    UserError names a table that is not there, is damaged or lacks a column.
    """

    def __init__(self, paths: Sequence[Path], codec: Codec, needed: Collection[str] = NEEDED) -> None:
        self.codec = codec
        self.pieces: list[Piece] = []
        for path in paths:
            metadata = opened(path, needed).metadata
            self.pieces += [Piece(path, n, metadata.row_group(n).num_rows) for n in range(metadata.num_row_groups)]
        self._ends = list(accumulate(piece.count for piece in self.pieces))
        self._rows: Array | None = None

    def take(self, rows: Array) -> Candidates:
        """Those of these rows, in this order."""
        some = object.__new__(Candidates)
        some.codec, some.pieces, some._ends = self.codec, self.pieces, self._ends
        some._rows = rows if self._rows is None else self._rows[rows]
        return some

    def which(self, some: Candidates) -> Array:
        """N booleans: those that are among ``some`` of the same tables."""
        found = np.zeros(self._ends[-1] if self._ends else 0, bool)
        found[slice(None) if some._rows is None else some._rows] = True
        return found if self._rows is None else found[self._rows]

    @property
    def paths(self) -> list[Path]:
        """The tables that have rows."""
        return list(dict.fromkeys(piece.path for piece in self.pieces))

    def __len__(self) -> int:
        return len(self._rows) if self._rows is not None else self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, at: int) -> Candidate: ...
    @overload
    def __getitem__(self, at: slice) -> list[Candidate]: ...
    def __getitem__(self, at: int | slice) -> Candidate | list[Candidate]:
        rows = np.arange(len(self))[at]
        return list(self.take(rows)) if isinstance(at, slice) else next(iter(self.take(np.array([rows]))))

    def __iter__(self) -> Iterator[Candidate]:
        return self.decoded()

    def decoded(self, lists: bool = True) -> Iterator[Candidate]:
        """All of them; without ``lists``, their outputs without what they have per token."""
        prompts = Prompts()
        for path, batch in self.batches(lists=lists):
            for row in rows_of(batch):
                yield candidate_of(row, self.codec, path.parent, prompts)

    def batches(
        self, columns: Sequence[str] | None = None, size: int = BATCH, lists: bool = True
    ) -> Iterator[tuple[Path, pa.RecordBatch]]:
        """Their rows, in order, at most ``size`` at a time, as they lie in which file; of columns only these, and
        without those that hold ``lists``."""
        if self._rows is None:
            yield from ((path, batch) for path, _, batch in self._read(range(len(self.pieces)), columns, size, lists))
        elif (self._rows[1:] > self._rows[:-1]).all():
            yield from self._picked(self._rows, columns, size, lists)
        else:
            for start in range(0, len(self._rows), size):
                yield from self._unordered(self._rows[start : start + size], columns, size, lists)

    def _read(
        self, pieces: Iterable[int], columns: Sequence[str] | None, size: int, lists: bool
    ) -> Iterator[tuple[Path, int, pa.RecordBatch]]:
        """Of these pieces all rows, and which the first of each batch is."""
        for path, numbers in groupby(pieces, lambda number: self.pieces[number].path):
            with opened(path, ()) as file, readable(path):
                fields = [field for field in file.schema_arrow if columns is None or field.name in columns]
                names = [field.name for field in fields if lists or not pa.types.is_nested(field.type)]
                for number in numbers:
                    start = self._ends[number] - self.pieces[number].count
                    groups = [self.pieces[number].group]
                    for batch in file.iter_batches(size, row_groups=groups, columns=names, use_threads=False):
                        yield path, start, batch
                        start += batch.num_rows

    def _picked(
        self, rows: Array, columns: Sequence[str] | None, size: int, lists: bool
    ) -> Iterator[tuple[Path, pa.RecordBatch]]:
        """Of rising rows."""
        pieces = np.unique(np.searchsorted(self._ends, rows, side="right")).tolist()
        for path, start, batch in self._read(pieces, columns, size, lists):
            low, high = np.searchsorted(rows, [start, start + batch.num_rows])
            if low < high:
                yield path, batch.take(pa.array(rows[low:high] - start))

    def _unordered(
        self, rows: Array, columns: Sequence[str] | None, size: int, lists: bool
    ) -> Iterator[tuple[Path, pa.RecordBatch]]:
        """Of rows in any order, each perhaps several times."""
        rising, place = np.unique(rows, return_inverse=True)
        found = list(self._picked(rising, columns, size, lists))
        ends = np.cumsum([batch.num_rows for _, batch in found])
        which = np.searchsorted(ends, place, side="right")
        starts = np.flatnonzero(np.r_[True, which[1:] != which[:-1]])
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            path, batch = found[which[start]]
            yield path, batch.take(pa.array(place[start:stop] - (ends[which[start]] - batch.num_rows)))

    @cached_property
    def keys(self) -> Keys:
        """Whose they are, and which of theirs."""
        index = [np.empty(0, np.int32)]
        index += [_floats(batch.column("index")).astype(np.int32) for _, batch in self.batches(["index"], GROUP)]
        prompt, ids = self._coded("prompt_id")
        return Keys(prompt, np.concatenate(index), ids)

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


class Ledger(Sequence[Scored]):
    """Scored candidates: their outputs on disk, their numbers in memory."""

    def __init__(self, candidates: Candidates, columns: Columns) -> None:
        self.candidates = candidates
        self.columns = columns

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
        return map(self._scored, count(), self.candidates)

    @property
    def sources(self) -> tuple[Array, list[str]]:
        return self.candidates.sources

    def skim(self) -> Iterator[Scored]:
        """All of them, their outputs without what they have per token."""
        return map(self._scored, count(), self.candidates.decoded(lists=False))

    def _scored(self, row: int, candidate: Candidate) -> Scored:
        columns = self.columns
        parts = {name: _optional(part[row]) for name, part in columns.parts.items()}
        return Scored(candidate, _optional(columns.reward[row]), parts)

    def which(self, chosen: Sequence[Scored]) -> Array:
        """N booleans: those that are ``chosen``; what is not a part of this ledger is told by prompt and index."""
        if isinstance(chosen, Ledger) and chosen.candidates.pieces is self.candidates.pieces:
            return self.candidates.which(chosen.candidates)
        keys, wanted = self.columns.keys, keys_of([one.candidate for one in chosen])
        numbers = pc.index_in(pa.array(wanted.ids, pa.string()), pa.array(keys.ids, pa.string()))
        place = numbers.fill_null(-1).to_numpy(zero_copy_only=False)[wanted.prompt].astype(np.int64)
        return np.isin((keys.prompt.astype(np.int64) << 32) + keys.index, (place << 32) + wanted.index)


def _optional(value: Any) -> float | None:
    return None if value != value else float(value)


def scored_in(paths: Sequence[Path], codec: Codec) -> Ledger:
    """The scored candidates of these tables, one after the other. NaN is not scored; UserError where a reward
    is infinite."""
    candidates = Candidates(paths, codec, (*NEEDED, "reward"))
    fields = [name for path in paths for name in opened(path, ()).schema_arrow.names]
    names = list(dict.fromkeys(name for name in fields if name.startswith(PART)))
    found: dict[str, list[Array]] = {name: [np.empty(0)] for name in ("reward", *names)}
    for _, batch in candidates.batches(list(found), GROUP):
        for name, values in found.items():
            there = name in batch.schema.names
            values.append(_floats(batch.column(name)) if there else np.full(batch.num_rows, np.nan))
    whole = {name: np.concatenate(values) for name, values in found.items()}
    for row in np.flatnonzero(np.isinf(whole["reward"]))[:1].tolist():
        one = candidates[row]
        raise UserError(f"candidate {one.index} of prompt {one.prompt.id!r}: the reward is {whole['reward'][row]}")
    parts = {name.removeprefix(PART): whole[name] for name in names}
    return Ledger(candidates, Columns(candidates.keys, whole["reward"], parts))


def _floats(column: pa.Array) -> Array:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def write(path: Path, ledger: Ledger, chosen: Array | None) -> None:
    """The same table as ``write_scored`` writes, in a stream. ``chosen``: N booleans, or None: not decided yet."""
    names = {PART + name: pa.float64() for name in ledger.columns.parts}
    plain = pa.schema(list({**ROW, **ledger.candidates.codec.schema}.items()))
    schema = pa.schema([*plain, ("reward", pa.float64()), *names.items(), ("chosen", pa.bool_())])
    with replacing(path) as part, pq.ParquetWriter(part, schema, **layout(schema)) as writer:
        for group in _grouped(_ahead(_tables(ledger, chosen, plain, path.parent))):
            writer.write_table(group.cast(schema))


def _tables(ledger: Ledger, chosen: Array | None, plain: pa.Schema, folder: Path) -> Iterator[pa.Table]:
    columns, start = ledger.columns, 0
    for source, batch in ledger.candidates.batches():
        rows = slice(start, start := start + batch.num_rows)
        table = _moved(batch, plain, ledger.candidates.codec, source.parent, folder)
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


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same, the next one made in a thread while this one is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item
