"""Write what a run said in the formats of :mod:`raftune.share.formats`: a file, or a data set in a folder with its
card. In a stream: of a round its numbers are in memory, of its outputs one batch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import progress
from ..errors import UserError
from ..files import replacing, replacing_folder
from ..report.record import Record
from ..types import Scored
from . import card, formats, rounds
from .formats import Row

SUFFIXES = {"sft": (".jsonl", ".parquet"), "pairs": (".jsonl", ".parquet"), "alpacaeval": (".json",)}
METADATA = "metadata.jsonl"
GROUP = 1 << 13  # rows that are written at once


@dataclass(frozen=True)
class Request:
    """What is wanted of a run. ``numbers``: of these rounds, or of all; ``everything``: all that was scored, not only
    the chosen; ``margin``: of pairs; ``generator``: a name for AlpacaEval, by default the run's."""

    numbers: Sequence[int] = ()
    everything: bool = False
    margin: float = 0.0
    generator: str | None = None


@dataclass
class Report:
    """How many rows were written of each format, and what was left out, a line each."""

    counts: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def write(record: Record, kind: str, out: Path, request: Request) -> Report:
    """Write one format. UserError where it is not for this run, or where nothing is left to write."""
    fits(record, kind)
    report = Report()
    if kind == "imagefolder" or (kind in formats.TOLD and not out.suffix):
        with replacing_folder(out) as part:
            dataset(record, part, (kind,), request, report, out.name)
    elif out.suffix not in SUFFIXES[kind]:
        folder = ", or a name without a suffix for a folder with a card" if kind in formats.TOLD else ""
        raise UserError(f"--out {out}: {kind} is written as {' or '.join(SUFFIXES[kind])}{folder}")
    elif kind == "alpacaeval":
        report.counts[kind] = _listed(out, _answers(record, request))
    else:
        report.counts[kind] = _rows(out, kind, _selected(record, kind, request))
    report.left_out[:0] = record.missing
    return report


def fits(record: Record, kind: str) -> None:
    """UserError where a run does not hold what the format is for."""
    modality = record.modality
    if kind not in modality.formats:
        raise UserError(f"--format {kind}: is not for a run of {modality.name}; use {', '.join(modality.formats)}")


def dataset(
    record: Record, folder: Path, kinds: Sequence[str], request: Request, report: Report, name: str | None = None
) -> None:
    """A folder that ``datasets.load_dataset`` opens, with its card; formats that have no row are left out of several.
    UserError where none has one."""
    for kind in kinds:
        try:
            if kind == "imagefolder":
                report.counts[kind] = _pictures(record, folder, request, report)
            else:
                out = folder / kind / "train.parquet"
                report.counts[kind] = _rows(out, kind, _selected(record, kind, request))
        except NothingToShare:
            if len(kinds) == 1:
                raise
    if not report.counts:
        raise NothingToShare(f"{record.folder}: nothing is there to share")
    written = card.of_dataset(record, name or record.name, report.counts, request.everything, request.margin)
    written.save(folder / card.NAME)


class NothingToShare(UserError):
    """No row of a format."""


def _selected(record: Record, kind: str, request: Request) -> Iterator[Row]:
    found = rounds.tables(record, "scored" if kind == "pairs" or request.everything else "chosen", request.numbers)
    with progress.bar("export", len(found)) as advance:
        for number, table in found:
            if kind == "pairs":
                yield from formats.pairs(number, table, request.margin)
            else:
                some = table.take(np.flatnonzero(table.columns.scored)) if request.everything else table
                yield from (formats.sft(number, one) for one in some.skim())
            advance(1)


def _answers(record: Record, request: Request) -> Iterator[Row]:
    """A held-out answer a prompt: the first that was drawn."""
    number, table = rounds.heldout(record, next(iter(request.numbers), None))
    firsts = np.unique(table.columns.keys.prompt, return_index=True)[1]
    asked = str((record.recipe.get("prompts") or {}).get("path") or "raftune")
    for one in table.take(np.sort(firsts)).skim():
        yield formats.alpacaeval(one, request.generator or f"{record.name}-round-{number}", Path(asked).stem)


def _rows(out: Path, kind: str, rows: Iterator[Row]) -> int:
    first, rows = _begun(formats.alike(rows), kind)
    if out.suffix == ".jsonl":
        return _lines(out, rows)
    schema, count = formats.schema(kind, not isinstance(first["prompt"], str)), 0
    with replacing(out) as part, pq.ParquetWriter(part, schema) as writer:
        while some := list(islice(rows, GROUP)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
            count += len(some)
    return count


def _begun(rows: Iterator[Row], kind: str) -> tuple[Row, Iterator[Row]]:
    """The first row, and all of them."""
    first = next(rows, None)
    if first is None:
        why = "no prompt has two outputs whose rewards differ so" if kind == "pairs" else "nothing was chosen"
        raise NothingToShare(f"--format {kind}: {why}")
    return first, chain([first], rows)


def _lines(out: Path, rows: Iterator[Row]) -> int:
    count = 0
    with replacing(out) as part, part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(_json(row) + "\n")
            count += 1
    return count


def _json(row: Row) -> str:
    """On one line, whoever splits lines: some take Unicode's separators for ends."""
    return re.sub("[\u0085\u2028\u2029]", lambda one: f"\\u{ord(one[0]):04x}", json.dumps(row, ensure_ascii=False))


def _listed(out: Path, rows: Iterator[Row]) -> int:
    """One JSON list, a row a line."""
    _, rows = _begun(rows, "alpacaeval")
    count = 0
    with replacing(out) as part, part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(("[\n" if count == 0 else ",\n") + _json(row))
            count += 1
        file.write("\n]\n")
    return count


def _pictures(record: Record, folder: Path, request: Request, report: Report) -> int:
    """PNG files and ``metadata.jsonl``. A picture that is gone or damaged is left out and told."""
    found = rounds.tables(record, "scored" if request.everything else "chosen", request.numbers)

    def rows() -> Iterator[Row]:
        for number, table in found:
            some = table.take(np.flatnonzero(table.columns.scored)) if request.everything else table
            with progress.bar("export", len(some)) as advance:
                for place, one in enumerate(some.skim()):
                    name = f"round-{number:04d}/{place:06d}.png"
                    if _copied(one, folder / name, report):
                        yield formats.picture(number, one, name)
                    advance(1)

    count = _lines(folder / METADATA, rows())
    if not count:
        raise NothingToShare(report.left_out[0] if report.left_out else "--format imagefolder: nothing was chosen")
    return count


def _copied(one: Scored, target: Path, report: Report) -> bool:
    try:
        data = one.candidate.output.png
    except UserError as error:
        report.left_out.append(str(error).partition(";")[0])
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return True
