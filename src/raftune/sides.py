"""What two policies said to the same prompts: from run directories (only read, also while they run) or tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import pick, table
from .errors import UserError
from .files import read_json
from .store import best_of
from .types import Scored

log = logging.getLogger("raftune")

HELDOUT = "heldout/"


@dataclass(frozen=True)
class Side:
    """``rounds``: the figures of all rounds of its run; ``number``: whose outputs these are. A table has neither."""

    name: str
    path: Path
    scored: Sequence[Scored]
    modality: str
    number: int | None = None
    rounds: Sequence[Mapping[str, Any]] = ()

    @property
    def figures(self) -> dict[str, float]:
        """The run's own held-out figures of this round, and what the outputs as such tell."""
        own = next((row for row in self.rounds if row["round"] == self.number), {})
        logged = {key.removeprefix(HELDOUT): value for key, value in own.items() if key.startswith(HELDOUT)}
        numbers = {key: value for key, value in logged.items() if isinstance(value, int | float)}
        return pick.modality(self.modality).describe([one.candidate for one in self.scored], None) | numbers


def side(path: Path, number: int | None = None) -> Side:
    """A run's held-out outputs of round ``number`` (by default of its best one, and of its last evaluated one where no
    reward was measured), or the rows of a table of scored or unscored candidates."""
    if not (path / "rounds").is_dir():
        if path.is_dir():
            raise UserError(f"{path}: holds no rounds; give a run directory or a table that `score` wrote")
        if number is not None and path.exists():
            raise UserError(f"{path}: is a table and has no rounds; leave out its --round or --initial")
        return _read(path, path.stem)
    rounds = [row for file in sorted(path.glob("rounds/*/metrics.json")) if (row := _figures(file)) is not None]
    tables = {int(file.parent.name): file for file in sorted(path.glob("rounds/*/heldout.parquet"))}
    if not tables:
        raise UserError(f"{path}: no round was evaluated yet")
    best = best_of(rounds)
    chosen = number if number is not None else max(tables) if best is None else best
    if chosen not in tables:
        raise UserError(f"{path}: round {chosen} was not evaluated; there are {', '.join(map(str, tables))}")
    name = path.resolve().name
    return _read(tables[chosen], f"{name} round {chosen}", chosen, rounds)


def _figures(file: Path) -> Mapping[str, Any] | None:
    """Of a round; None where they are damaged, which is told: the other rounds compare."""
    try:
        found = read_json(file)
    except UserError:
        found = None
    if isinstance(found, Mapping) and "round" in found:
        return found
    log.warning("%s: damaged; the figures of this round are left out", file)
    return None


def _read(path: Path, name: str, number: int | None = None, rounds: Sequence[Mapping[str, Any]] = ()) -> Side:
    modality = pick.modality_in(path)
    codec = pick.modality(modality).codec
    if "reward" in table.columns_of(path):
        scored = table.read_scored(path, codec)
    else:
        scored = [Scored(candidate, None) for candidate in table.read_candidates(path, codec)]
    return Side(name, path, scored, modality, number, rounds)


def paired(a: Side, b: Side) -> tuple[list[tuple[Scored, Scored]], int]:
    """The outputs of equal prompt id and index, in A's order, and how many of both sides have no partner."""
    if a.modality != b.modality:
        raise UserError(f"{a.name} holds {a.modality}, {b.name} {b.modality}: they do not compare")
    theirs = {table.key_of(one): one for one in b.scored}
    pairs = [(one, theirs[key]) for one in a.scored if (key := table.key_of(one)) in theirs]
    if not pairs:
        raise UserError(f"{a.path} and {b.path} have no prompt id and index in common")
    for one, other in pairs:
        mine, their = one.candidate.prompt, other.candidate.prompt
        if json.dumps(mine.content) != json.dumps(their.content):
            raise UserError(f"{a.path} and {b.path}: prompt {mine.id!r} is not the same text in both")
    return pairs, len(a.scored) + len(b.scored) - 2 * len(pairs)
