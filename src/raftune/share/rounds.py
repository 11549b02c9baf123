"""Which tables of a run are shared: those of committed rounds, read as the report reads them."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UserError
from ..ledger import ScoredTable
from ..report.record import Record


def committed(record: Record) -> list[int]:
    """The rounds that are done. UserError where there is none yet."""
    done = [int(path.parent.name) for path in sorted(record.folder.glob("rounds/*/DONE"))]
    if not done:
        raise UserError(f"{record.folder}: no round is committed, nothing is chosen yet; wait for the first")
    return done


def tables(record: Record, name: str, asked: Sequence[int] = ()) -> list[tuple[int, ScoredTable]]:
    """The tables ``scored`` or ``chosen`` of all committed rounds, or of those that are ``asked`` for.

    A table that cannot be read is left out and told in ``record.missing``. UserError where it was asked for, or where
    none is left.
    """
    done = committed(record)
    for number in asked:
        if number not in done:
            raise UserError(f"--round {number}: is not committed; there are {', '.join(map(str, done))}")
    found: list[tuple[int, ScoredTable]] = []
    for number in dict.fromkeys(asked or done):
        if (table := record.table(number, name)) is not None:
            found.append((number, table))
            continue
        path = record.folder / "rounds" / f"{number:04d}" / f"{name}.parquet"
        why = next((line for line in record.missing if line.startswith(str(path))), f"{path}: is not there")
        if asked or (number == done[-1] and not found):
            raise UserError(why)
        if why not in record.missing:
            record.missing.append(why)
    return found


def heldout(record: Record, asked: int | None = None) -> tuple[int, ScoredTable]:
    """The held-out outputs of a round; by default of the best one, of the last evaluated one where no reward was
    measured."""
    there = [int(path.parent.name) for path in sorted(record.folder.glob("rounds/*/heldout.parquet"))]
    if not there:
        raise UserError(f"{record.folder}: no round was evaluated yet")
    best = record.best
    number = asked if asked is not None else there[-1] if best is None else best
    if number not in there:
        raise UserError(f"--round {number}: was not evaluated; there are {', '.join(map(str, there))}")
    table = record.table(number, "heldout")
    if table is None:
        raise UserError(record.missing[-1])
    return number, table
