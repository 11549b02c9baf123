"""Ballots: who voted what on which pair, in SQLite. Each vote is on disk before the next is asked for."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..evaluate.votes import VOTES
from ..files import replacing

SCHEMA = """
CREATE TABLE IF NOT EXISTS votes (
    rater TEXT NOT NULL, pair TEXT NOT NULL, vote TEXT NOT NULL CHECK (vote IN ('first', 'second', 'tie')),
    note TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (rater, pair)
) STRICT
"""
WAIT = 30.0  # seconds for another rater's vote to be written
LONGEST = 80  # characters of a rater's name


@dataclass(frozen=True)
class Vote:
    """``vote``: first, second or tie; ``at``: seconds since 1970."""

    rater: str
    pair: str
    vote: str
    note: str
    at: float


class Ballots:
    """The votes of all raters. Safe to use from many threads and processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as database:
            database.execute("PRAGMA journal_mode=WAL")  # raters read while another writes
            database.execute(SCHEMA)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            database = sqlite3.connect(self.path, timeout=WAIT)
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: {error}") from None
        try:
            with database:  # one transaction
                yield database
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path}: {error}; is it a file of votes?") from None
        finally:
            database.close()

    def cast(self, rater: str, pair: str, vote: str, note: str = "") -> None:
        """Of a rater's votes on a pair the last counts: a second click changes nothing, a second thought does."""
        if vote not in VOTES:
            raise ValueError(f"a vote is one of {', '.join(VOTES)}, not {vote!r}")
        with self._open() as database:
            database.execute(
                "INSERT INTO votes VALUES (?, ?, ?, ?, ?) ON CONFLICT (rater, pair) "
                "DO UPDATE SET vote = excluded.vote, note = excluded.note, at = excluded.at",
                (rater, pair, vote, note, time.time()),
            )

    def votes(self, rater: str | None = None) -> list[Vote]:
        """All, or a rater's own, in the order in which they were given."""
        with self._open() as database:
            asked = "SELECT rater, pair, vote, note, at FROM votes WHERE ?1 IS NULL OR rater = ?1 ORDER BY at, rowid"
            return [Vote(*row) for row in database.execute(asked, (rater,))]

    def export(self, path: Path) -> int:
        """The lines that ``raftune compare --by votes.jsonl`` reads; how many."""
        found = self.votes()
        with replacing(path) as part:
            lines = ({"id": one.pair, "vote": one.vote, "rater": one.rater, "note": one.note} for one in found)
            part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        return len(found)


def rater_of(name: str) -> str:
    """A name as it is kept: without spaces around it, or doubled, so that one person stays one rater."""
    rater = " ".join(name.split())
    if not rater:
        raise UserError("your name: is empty; votes are kept under it")
    if len(rater) > LONGEST:
        raise UserError(f"your name: has {len(rater)} characters; {LONGEST} at most")
    return rater
