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
    found = []
    for number in dict.fromkeys(asked or done):
        table = record.table(number, name)
        if table is not None:
            found.append((number, table))
        elif asked or not record.missing:
            why = record.missing[-1] if record.missing else f"{record.folder}: round {number} has no {name}.parquet"
            raise UserError(why)
    if not found:
        raise UserError(f"{record.folder}: no table can be read: {record.missing[0]}")
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
