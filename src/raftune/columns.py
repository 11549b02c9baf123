"""Scored candidates as columns of numbers: what ranking, selection and figures need of them. Pure functions, no torch.

A table on disk has such columns (:mod:`raftune.ledger`); those of a list are made from its objects. So a rule is
written once, on columns, and works on both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .types import Candidate, Scored

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK = 1 << 18  # rows that are ranked at once


@dataclass(frozen=True)
class Keys:
    """What names N candidates. ``prompt``: the number of its prompt, rising in order of first appearance; ``index``:
    among the prompt's; ``ids``: of each prompt."""

    prompt: Array
    index: Array
    ids: Sequence[str]

    def id_of(self, prompt: int) -> str:
        found: Any = self.ids[prompt]
        return found if isinstance(found, str) else found.as_py()

    def take(self, rows: Array) -> Keys:
        """Those of these rows, in this order."""
        prompt, index = self.prompt[rows], self.index[rows]
        if (prompt[1:] >= prompt[:-1]).all():
            return Keys(prompt, index, self.ids)
        first = np.full(len(self.ids), len(rows))  # another prompt may come first now
        np.minimum.at(first, prompt, np.arange(len(rows)))
        order = np.argsort(first, kind="stable")
        number = np.empty(len(order), np.int32)
        number[order] = np.arange(len(order))
        return Keys(number[prompt], index, [self.id_of(one) for one in order.tolist()])


@dataclass(frozen=True)
class Columns:
    """N scored candidates: ``reward`` and each of ``parts`` in float64, NaN where not scored."""

    keys: Keys
    reward: Array
    parts: Mapping[str, Array]

    @property
    def scored(self) -> Array:
        """Which have a reward."""
        return ~np.isnan(self.reward)

    def scored_of(self, rows: Array) -> Array:
        return ~np.isnan(self.reward[rows])

    @property
    def unscored(self) -> int:
        return int(np.isnan(self.reward).sum())

    @property
    def mean_reward(self) -> float | None:
        """Over the rewards that exist."""
        return mean(self.reward)

    def take(self, rows: Array) -> Columns:
        return Columns(self.keys.take(rows), self.reward[rows], {name: part[rows] for name, part in self.parts.items()})


@runtime_checkable
class Columnar(Protocol):
    """A sequence of scored candidates that need not be read to be ranked."""

    @property
    def columns(self) -> Columns: ...

    @property
    def sources(self) -> tuple[Array, list[str]]: ...

    def take(self, rows: Array) -> Sequence[Scored]:
        """Those of these rows, in this order."""
        ...

    def skim(self) -> Iterator[Scored]:
        """All, with as little of their outputs as filters look at."""
        ...


@runtime_checkable
class Keyed(Protocol):
    """A sequence of candidates that need not be read to be told apart."""

    @property
    def keys(self) -> Keys: ...


def columns_of(scored: Sequence[Scored]) -> Columns:
    if isinstance(scored, Columnar):
        return scored.columns
    names = scored[0].parts if scored else ()
    return Columns(
        keys_of([one.candidate for one in scored]),
        floats([one.reward for one in scored]),
        {name: floats([one.parts[name] for one in scored]) for name in names},
    )


def keys_of(candidates: Sequence[Candidate]) -> Keys:
    if isinstance(candidates, Keyed):
        return candidates.keys
    prompt, ids = _numbered(one.prompt.id for one in candidates)
    return Keys(prompt, np.array([one.index for one in candidates], np.int32), ids)


def sources_of(scored: Sequence[Scored]) -> tuple[Array, list[str]]:
    """The number of each one's source, and the names of the sources, in order of first appearance."""
    return scored.sources if isinstance(scored, Columnar) else _numbered(one.candidate.source for one in scored)


def _numbered(names: Iterable[str]) -> tuple[Array, list[str]]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int32), list(numbers)


def taken(scored: Sequence[Scored], rows: Array) -> Sequence[Scored]:
    """Those of these rows, in this order; still unread where ``scored`` is."""
    return scored.take(rows) if isinstance(scored, Columnar) else [scored[row] for row in rows.tolist()]


def skimmed(scored: Sequence[Scored]) -> Iterator[Scored]:
    return scored.skim() if isinstance(scored, Columnar) else iter(scored)


def floats(values: Sequence[float | None] | Array) -> Array:
    """None becomes NaN."""
    return np.asarray(values, np.float64)


def optional(values: Array) -> list[float | None]:
    """NaN becomes None."""
    return [None if value != value else value for value in values.tolist()]


def known(values: Array) -> memoryview:
    """Those that are not NaN; they come out as Python's floats, without a list of them."""
    return values[~np.isnan(values)].data


def mean(values: Array) -> float | None:
    """Of those that are not NaN, summed exactly; None where there is none."""
    found = known(values)
    return math.fsum(found) / len(found) if len(found) else None


def blocks(prompt: Array) -> Iterator[Array]:
    """The rows, some prompts at a time, each of them whole; all at once where prompts' candidates lie apart."""
    cuts = np.array([0, len(prompt)])
    if len(prompt) > BLOCK and (prompt[1:] >= prompt[:-1]).all():
        cuts = np.unique([0, *np.searchsorted(prompt, prompt[BLOCK::BLOCK]), len(prompt)])
    for start, stop in pairwise(cuts.tolist()):
        yield np.arange(start, stop)


def runs(prompt: Array) -> tuple[Array, Array]:
    """Where each prompt's rows begin and how many they are, rows sorted by prompt."""
    starts = np.flatnonzero(np.r_[len(prompt) > 0, prompt[1:] != prompt[:-1]])
    return starts, np.diff(np.r_[starts, len(prompt)])


def prompts_in(keys: Keys) -> int:
    """How many different ones."""
    return int(np.count_nonzero(np.bincount(keys.prompt, minlength=1)))


def untold(columns: Columns) -> tuple[int, int]:
    """Prompts whose ranking tells nothing: how many have two or more rewards that all tie, and how many have none."""
    prompt, reward = columns.keys.prompt, columns.reward
    there = np.bincount(prompt, minlength=1) > 0
    scored = columns.scored
    count = np.bincount(prompt[scored], minlength=len(there))
    high, low = np.full(len(there), -math.inf), np.full(len(there), math.inf)
    np.maximum.at(high, prompt[scored], reward[scored])
    np.minimum.at(low, prompt[scored], reward[scored])
    return int(((count > 1) & (high == low)).sum()), int((there & (count == 0)).sum())


def spread(prompt: Array, most: int) -> Array:
    """All rows, or, where there are more than ``most``, about so many: all of every n-th prompt."""
    every = -(-len(prompt) // most)
    return np.flatnonzero(prompt % every == 0) if every > 1 else np.arange(len(prompt))
