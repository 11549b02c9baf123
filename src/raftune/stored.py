"""Rows of parquet files as a sequence that is decoded while it is iterated: one batch is in memory at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import copy
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, overload

import numpy as np
import pyarrow as pa

from .columns import Array
from .rows import opened, readable, rows_of

T = TypeVar("T")
BATCH = 1 << 13  # rows that are decoded at once


class Piece(NamedTuple):
    """A row group of a file."""

    path: Path
    group: int
    rows: int


class Stored(Sequence[T]):
    """The rows of some tables, one after the other, or those of them that were taken, in that order.

    UserError names a table that is not there, is damaged or lacks a column that is ``needed``.
    """

    def __init__(self, paths: Sequence[Path], needed: Collection[str]) -> None:
        self.pieces: list[Piece] = []
        for path in paths:
            metadata = opened(path, needed).metadata
            self.pieces += [Piece(path, n, metadata.row_group(n).num_rows) for n in range(metadata.num_row_groups)]
        self._ends = list(accumulate(piece.rows for piece in self.pieces))
        self._rows: Array | None = None

    @abstractmethod
    def decode(self, row: dict[str, Any], folder: Path) -> T:
        """What a row of a table in this folder stands for."""

    def take(self, rows: Array) -> Self:
        """Those of these rows, in this order."""
        some = copy(self)
        some._rows = rows if self._rows is None else self._rows[rows]
        return some

    def which(self, some: Self) -> Array:
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
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        rows = np.arange(len(self))[at]
        return list(self.take(rows)) if isinstance(at, slice) else next(iter(self.take(np.array([rows]))))

    def __iter__(self) -> Iterator[T]:
        return self.decoded()

    def decoded(self, lists: bool = True) -> Iterator[T]:
        """All of them; without the columns that hold ``lists``, if these are not wanted."""
        for path, batch in self.batches(lists=lists):
            for row in rows_of(batch):
                yield self.decode(row, path.parent)

    def batches(
        self, columns: Sequence[str] | None = None, size: int = BATCH, lists: bool = True
    ) -> Iterator[tuple[Path, pa.RecordBatch]]:
        """The rows, in order, at most ``size`` at a time, as they lie in which file; of columns only these, and without
        those that hold ``lists``."""
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
                names = names or file.schema_arrow.names[:1]  # none of these are there; the rows are
                for number in numbers:
                    start = self._ends[number] - self.pieces[number].rows
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
