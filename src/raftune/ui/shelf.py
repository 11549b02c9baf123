"""Shelf: the candidates of a run, searched where they lie. DuckDB reads the columns that a question needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow.parquet as pq

from ..columns import Array
from ..errors import UserError
from ..rows import opened

Kind = Literal["scored", "heldout"]
ORDERS = {
    "as they were drawn": "file, row",
    "highest reward first": "reward DESC NULLS LAST, file, row",
    "lowest reward first": "reward ASC NULLS LAST, file, row",
}
SHOWN = ("prompt_id", "prompt", "chat", "index", "source", "logprob", "output", "finish_reason", "reward", "chosen")


@dataclass(frozen=True)
class Question:
    """What to look for; None and empty: anything. ``prompt`` and ``text`` are parts of them, in any case; a prompt's id
    is found too, as a whole."""

    kind: Kind = "scored"
    round: int | None = None
    prompt: str = ""
    text: str = ""
    source: str = ""
    low: float | None = None
    high: float | None = None
    chosen: bool | None = None
    order: str = "as they were drawn"


@dataclass(frozen=True)
class Hits:
    """Where the answers lie: ``file``, the number of a table; ``row`` in it."""

    tables: Sequence[Path]
    file: Array
    row: Array

    def __len__(self) -> int:
        return len(self.file)


class Shelf:
    """A run directory, only read. What is not committed, or damaged, is not there."""

    def __init__(self, run: Path) -> None:
        if not (run / "rounds").is_dir():
            raise UserError(f"{run}: holds no rounds; give a run directory")
        self.run = run
        self._hits = lru_cache(maxsize=8)(self._search)

    def tables(self, kind: Kind) -> list[Path]:
        """Those that can be read, by round."""
        return [path for path in sorted(self.run.glob(f"rounds/*/{kind}.parquet")) if _readable(path)]

    def rounds(self, kind: Kind) -> list[int]:
        return [int(path.parent.name) for path in self.tables(kind)]

    def sources(self, kind: Kind) -> list[str]:
        """The names of all sources."""
        tables = self.tables(kind)
        if not tables:
            return []
        found = self._ask(f"SELECT DISTINCT source FROM {_read(tables)} WHERE source IS NOT NULL ORDER BY 1", tables)
        return [name for (name,) in found.fetchall()]

    def find(self, question: Question) -> Hits:
        """All that fit, in the order asked for; the last few questions are remembered."""
        tables = self.tables(question.kind)
        if question.round is not None:
            tables = [path for path in tables if int(path.parent.name) == question.round]
        changed = tuple(path.stat().st_mtime_ns for path in tables)
        return self._hits(question, tuple(tables), changed)

    def _search(self, question: Question, tables: Sequence[Path], changed: object) -> Hits:
        if not tables:
            return Hits(tables, np.empty(0, np.int64), np.empty(0, np.int64))
        where, values = _conditions(question)
        asked = (
            f"SELECT list_position($1, filename) - 1 AS file, file_row_number AS row FROM {_read(tables)} "
            f"{'WHERE ' + ' AND '.join(where) if where else ''} ORDER BY {ORDERS[question.order]}"
        )
        found = self._ask(asked, tables, *values).fetchnumpy()
        return Hits(tables, np.asarray(found["file"]), np.asarray(found["row"]))

    def page(self, hits: Hits, start: int, count: int) -> list[dict[str, Any]]:
        """Some of them: the columns of a row, those of its reward's parts too, ``round``, and ``folder``, from which a
        picture's path begins."""
        file, row = hits.file[start : start + count], hits.row[start : start + count]
        rows: dict[tuple[int, int], dict[str, Any]] = {}
        for number in np.unique(file).tolist():
            path = hits.tables[number]
            there = pq.read_schema(path).names
            names = [name for name in there if name in SHOWN or name.startswith("reward/")]
            columns = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
            asked = (
                f"SELECT file_row_number, {columns} FROM {_read([path])} WHERE file_row_number IN (SELECT unnest($2))"
            )
            for place, *values in self._ask(asked, [path], row[file == number].tolist()).fetchall():
                here = {"round": int(path.parent.name), "folder": path.parent}
                rows[number, place] = here | dict(zip(names, values, strict=True))
        return [rows[key] for key in zip(file.tolist(), row.tolist(), strict=True)]

    def _ask(self, asked: str, tables: Sequence[Path], *values: Any) -> duckdb.DuckDBPyConnection:
        """``$1`` stands for the tables."""
        with_own = duckdb.connect()  # threads do not share a connection
        try:
            return with_own.execute(asked, [[str(path) for path in tables], *values])
        except duckdb.Error as error:
            raise UserError(f"{self.run}: {str(error).splitlines()[0]}") from None


def _read(tables: Sequence[Path]) -> str:
    return "read_parquet($1, filename = true, file_row_number = true, union_by_name = true)"


def _readable(path: Path) -> bool:
    try:
        with opened(path, ["reward"]):
            return True
    except UserError:
        return False


def _conditions(question: Question) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []

    def add(condition: str, *given: Any) -> None:
        for one in given:
            values.append(one)
            condition = condition.replace("?", f"${len(values) + 1}", 1)
        where.append(condition)

    if question.prompt:
        add("(prompt ILIKE ? ESCAPE '\\' OR prompt_id = ?)", _pattern(question.prompt), question.prompt)
    if question.text:
        add("output ILIKE ? ESCAPE '\\'", _pattern(question.text))
    if question.source:
        add("source = ?", question.source)
    if question.low is not None:
        add("reward >= ?", question.low)
    if question.high is not None:
        add("reward <= ?", question.high)
    if question.chosen is not None:
        add("chosen = ?", question.chosen)
    return where, values


def _pattern(text: str) -> str:
    """Text as a part of a longer one, with nothing in it meaning something else."""
    for special in "\\%_":
        text = text.replace(special, "\\" + special)
    return f"%{text}%"
