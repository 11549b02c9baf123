"""Trial: a blind comparison in progress. Pairs without names on disk, ballots beside them, the next for a rater."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..evaluate import votes
from ..evaluate.winrate import Tally, tally
from ..files import read_json, write_json
from ..prompts import read_rows
from ..sides import paired, side
from .ballots import Ballots, Vote

VOTES_DB, VOTES_FILE = "votes.db", "votes.jsonl"
AT_LEAST = 0.4  # seconds that a pair is on the page before a vote is one: the second click of two is not


@dataclass(frozen=True)
class Trial:
    """A folder with ``pairs.jsonl`` and its key, as ``votes.write`` lays them."""

    folder: Path

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """In the one order in which all raters see them, so that many pairs get several votes."""
        found = [row for _, row in read_rows(str(self.folder / votes.PAIRS))]
        if not found:
            raise UserError(f"{self.folder / votes.PAIRS}: holds no pair")
        return found

    @cached_property
    def ballots(self) -> Ballots:
        return Ballots(self.folder / VOTES_DB)

    def pair(self, name: str) -> dict[str, Any] | None:
        return next((one for one in self.pairs if one["id"] == name), None)

    def given(self, rater: str) -> list[Vote]:
        """A rater's votes on these pairs, the latest last."""
        known = {one["id"] for one in self.pairs}
        return [vote for vote in self.ballots.votes(rater) if vote.pair in known]

    def next_for(self, rater: str) -> dict[str, Any] | None:
        """The first pair on which a rater has not voted; None where there is none left."""
        done = {vote.pair for vote in self.given(rater)}
        return next((one for one in self.pairs if one["id"] not in done), None)

    def vote(self, rater: str, pair: str, vote: str, note: str, shown_at: float) -> bool:
        """Keep a vote on a pair that was shown at ``shown_at`` (seconds since 1970); False where that was just now."""
        if self.pair(pair) is None:
            raise UserError("this pair is not of this comparison; reload the page")
        if time.time() - shown_at < AT_LEAST:
            return False
        self.ballots.cast(rater, pair, vote, note.strip())
        return True

    def results(self) -> tuple[Tally | None, Mapping[str, float]]:
        """Win rate of A over the pairs that have a vote, and the counts of :func:`votes.counts`."""
        key, said = votes.key_of(self.folder), {}
        for one in self.ballots.votes():
            if one.pair in key:
                said.setdefault(one.pair, {})[one.rater] = one.vote
        outcomes = [(key[pair]["prompt_id"], votes.outcome(of, key[pair]["first"])) for pair, of in said.items()]
        return tally(outcomes), votes.counts(said)

    def export(self) -> tuple[Path, int]:
        """Write all votes as lines that ``raftune compare --by`` reads; where, and how many."""
        path = self.folder / VOTES_FILE
        return path, self.ballots.export(path)


def prepared(folder: Path, run: Path, other: Path | None, seed: int = 0) -> Trial:
    """The comparison that is kept in ``folder``, or a new one: the run's best round against its own start, or against
    the best round of ``other``. Once there it stays as it is, whatever the run does. UserError where the folder holds
    another one."""
    asked = {"run": str(run.resolve()), "other": None if other is None else str(other.resolve()), "seed": seed}
    kept = folder / "trial.json"
    if kept.exists():
        if (before := read_json(kept)) != asked:
            changed = next(name for name in asked if before.get(name) != asked[name])
            raise UserError(
                f"{folder}: holds another comparison ({changed}: {before.get(changed)}); name another --out"
            )
        return Trial(folder)
    a, b = side(run), side(other) if other else side(run, 0)
    try:
        votes.write(folder, paired(a, b)[0], seed)
    except UserError as error:
        raise UserError(f"{a.name} and {b.name}: {error}") from None
    write_json(kept, asked)
    return Trial(folder)
