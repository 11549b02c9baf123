"""Ranking and selection: pure functions of scored candidates, on their columns. No torch.

Rules for the tails, each held by a test:

- Equal rewards keep sampling order: the lower index wins.
- A candidate that was not scored is never chosen; a prompt with no scored candidate gives nothing.
- A prompt whose candidates all tie gives its first, as the paper's argmax does; ``skip_tied`` leaves it out.
- A fraction keeps at least one candidate.
- Nothing chosen at all is an error, before any tuning starts.

But for ``above`` and a floor, rules depend on the order of the rewards only: no positive rescaling changes the choice.
"""

from __future__ import annotations

import math
import random as stdlib_random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .columns import Array, Columns, blocks, columns_of, runs, taken
from .errors import UserError
from .protocols import Select
from .types import Ranking, Scored, seed_of

RULES = "best, best:N, top:FRACTION, above:REWARD, random, random:N, random:FRACTION"


class NothingChosen(UserError):
    """No candidate of a round passed the rule."""


def group(scored: Sequence[Scored]) -> list[list[Scored]]:
    """The candidates of each prompt, prompts in order of first appearance."""
    groups: dict[str, list[Scored]] = {}
    for one in scored:
        groups.setdefault(one.candidate.prompt.id, []).append(one)
    return list(groups.values())


def best_first(scored: Sequence[Scored]) -> list[Scored]:
    """Those with a reward, highest first; equal rewards keep their order."""
    with_reward = [one for one in scored if one.reward is not None]
    return sorted(with_reward, key=lambda one: -_reward(one))


def rank(scored: Sequence[Scored]) -> list[Ranking]:
    """One ranking per prompt (paper, algorithm 1: the K candidates of a prompt are ranked among themselves)."""
    return [
        Ranking(members[0].candidate.prompt, tuple(best_first(members)), tuple(m for m in members if m.reward is None))
        for members in group(scored)
    ]


def _reward(one: Scored) -> float:
    if one.reward is None:
        raise ValueError("not scored")
    return one.reward


@dataclass(frozen=True)
class Best:
    """Local ranking: the ``n`` best of each prompt's K (the paper; n = 1)."""

    n: int = 1
    skip_tied: bool = False

    def __call__(self, scored: Sequence[Scored], seed: tuple[object, ...] = ()) -> Sequence[Scored]:
        columns = columns_of(scored)
        found = [self._of(columns, rows) for rows in blocks(columns.keys.prompt)]
        return taken(scored, np.concatenate(found))

    def _of(self, columns: Columns, rows: Array) -> Array:
        """The best among these rows, which hold their prompts whole; by prompt, then by index."""
        prompt, reward = columns.keys.prompt, columns.reward
        rows = rows[columns.scored_of(rows)]
        order = rows[np.lexsort((-reward[rows], prompt[rows]))]  # stable: equal rewards keep their order
        starts, counts = runs(prompt[order])
        kept = np.arange(len(order)) - np.repeat(starts, counts) < self.n
        if self.skip_tied:
            tied = (counts > 1) & (reward[order[starts]] == reward[order[starts + counts - 1]])
            kept &= ~np.repeat(tied, counts)
        best = order[kept]
        return best[np.lexsort((columns.keys.index[best], prompt[best]))]


@dataclass(frozen=True)
class Top:
    """Global ranking: the best ``fraction`` of all scored candidates (the paper's first version, its 1/k)."""

    fraction: float

    def __call__(self, scored: Sequence[Scored], seed: tuple[object, ...] = ()) -> Sequence[Scored]:
        columns = columns_of(scored)
        rows = np.flatnonzero(columns.scored)
        count = _share(len(rows), self.fraction)
        if count:
            reward = columns.reward[rows]
            least = np.partition(reward, len(rows) - count)[len(rows) - count]  # of those that are kept
            room = count - np.count_nonzero(reward > least)
            rows = np.union1d(rows[reward > least], rows[reward == least][:room])
        return taken(scored, rows)


@dataclass(frozen=True)
class Above:
    """Every candidate whose reward is at least ``floor``."""

    floor: float

    def __call__(self, scored: Sequence[Scored], seed: tuple[object, ...] = ()) -> Sequence[Scored]:
        return taken(scored, np.flatnonzero(columns_of(scored).reward >= self.floor))  # NaN is not


@dataclass(frozen=True)
class Random:
    """The matched control: as many as ``Best(n)`` (or ``Top(fraction)``) would choose, without ranking."""

    n: int | None = 1
    fraction: float | None = None

    def __call__(self, scored: Sequence[Scored], seed: tuple[object, ...] = ()) -> Sequence[Scored]:
        columns = columns_of(scored)
        if self.fraction is not None:
            rows = np.flatnonzero(columns.scored)
            drawn = _sample(len(rows), _share(len(rows), self.fraction), seed)
            return taken(scored, np.sort(rows[np.array(drawn, np.int64)]))
        found = [self._of(columns, rows, seed) for rows in blocks(columns.keys.prompt)]
        return taken(scored, np.sort(np.concatenate(found)))

    def _of(self, columns: Columns, rows: Array, seed: tuple[object, ...]) -> Array:
        """Some of each prompt's among these rows, which hold their prompts whole."""
        rows = rows[columns.scored_of(rows)]
        prompt = columns.keys.prompt[rows]
        rows = rows[np.argsort(prompt, kind="stable")]
        starts, counts = runs(np.sort(prompt))
        places = (
            start + place
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
            for place in _sample(count, self.n or 1, (*seed, columns.keys.id_of(int(columns.keys.prompt[rows[start]]))))
        )
        return rows[np.fromiter(places, np.int64)]


@dataclass(frozen=True)
class Floor:
    """``rule`` among those whose reward is at least ``floor``: a best of nothing but failures teaches failing."""

    rule: Select
    floor: float

    def __call__(self, scored: Sequence[Scored], seed: tuple[object, ...] = ()) -> Sequence[Scored]:
        above = Above(self.floor)
        if isinstance(self.rule, Best) and self.rule.skip_tied:  # ties are judged among all, not among what passes
            return above(self.rule(scored, seed))
        return self.rule(above(scored), seed)


def _share(count: int, fraction: float) -> int:
    return min(count, max(1, math.floor(count * fraction + 1e-9)))


def _sample(of: int, count: int, seed: tuple[object, ...]) -> list[int]:
    return stdlib_random.Random(seed_of("select", *seed)).sample(range(of), min(count, of))


def parse_rule(text: str, skip_tied: bool = False, floor: float | None = None) -> Select:
    """``best``, ``best:2``, ``top:0.1``, ``above:0.5``, ``random``, ``random:2``, ``random:0.1`` → the rule."""
    rule = _parse_rule(text, skip_tied)
    return rule if floor is None else Floor(rule, floor)


def _parse_rule(text: str, skip_tied: bool) -> Select:
    name, _, value = text.partition(":")
    if skip_tied and name != "best":
        raise UserError(f"select.skip_tied: goes with the rule best, not with {text!r}")
    try:
        match name:
            case "best":
                return Best(_count(value), skip_tied)
            case "top":
                return Top(_fraction(value))
            case "above" if math.isfinite(float(value)):
                return Above(float(value))
            case "random" if value.isdecimal() or not value:
                return Random(_count(value))
            case "random":
                return Random(None, _fraction(value))
    except ValueError:
        pass
    raise UserError(f"select.rule: {text!r} is not a rule; use one of {RULES} (N ≥ 1, 0 < FRACTION ≤ 1)")


def _count(value: str) -> int:
    count = int(value or "1")
    if count < 1:
        raise ValueError(value)
    return count


def _fraction(value: str) -> float:
    fraction = float(value)
    if not 0 < fraction <= 1:
        raise ValueError(value)
    return fraction


def name_of(rule: Select) -> str:
    """The same in every session: a rule's repr, or the name of a function or class whose repr holds an address."""
    return repr(rule) if " at 0x" not in repr(rule) else getattr(rule, "__qualname__", type(rule).__qualname__)


def choose(rule: Select, scored: Sequence[Scored], seed: tuple[object, ...] = ()) -> Sequence[Scored]:
    """Apply a rule; nothing chosen is an error, so that no learner is started on nothing."""
    chosen = rule(scored, seed)
    chosen = chosen if isinstance(chosen, Sequence) else list(chosen)
    if not chosen:
        raise NothingChosen(
            f"select: {rule} chose none of {len(scored)} candidates ({columns_of(scored).unscored} without a reward); "
            "loosen the rule or look at the reward"
        )
    return chosen
