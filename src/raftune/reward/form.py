"""Rewards of an output's form: a pattern, its length, its repetitions. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from ..filters import compiled, repetition, search
from ..types import Candidate
from .texts import each, texts_of


@dataclass(frozen=True)
class RegexReward:
    """1 where ``pattern`` (of the package ``regex``: ``re``'s and more) is found in the output, else 0.

    Not scored where the search takes more than ``seconds`` of CPU time.
    """

    pattern: str
    name: str = "regex"
    seconds: float = 1.0

    def __post_init__(self) -> None:
        compiled(f"reward {self.name!r}", self.pattern)

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        texts_of(self.name, candidates)
        return each(self.name, candidates, lambda c: search(self.pattern, c.output.text, self.seconds), self.seconds)


@dataclass(frozen=True)
class LengthReward:
    """1 for ``lo`` to ``hi`` words (between white space); below, words/lo; above, 2 - words/hi, but at least 0."""

    lo: int
    hi: int
    name: str = "length"

    def __post_init__(self) -> None:
        if not 0 <= self.lo <= self.hi or self.hi < 1:
            raise UserError(f"reward {self.name!r}: {self.lo}-{self.hi} is no range of words; write length:LO-HI")

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        return [self._value(len(text.split())) for text in texts_of(self.name, candidates)]

    def _value(self, words: int) -> float:
        return words / self.lo if words < self.lo else min(1.0, max(0.0, 2 - words / self.hi))


def length(spec: str, name: str) -> LengthReward:
    """``LO-HI`` → the reward."""
    lo, _, hi = spec.partition("-")
    if not (lo.isdecimal() and hi.isdecimal()):
        raise UserError(f"reward: 'length:{spec}' is no range of words; write length:LO-HI, like length:20-60")
    return LengthReward(int(lo), int(hi), name)


@dataclass(frozen=True)
class RepetitionReward:
    """Minus the share of the output's word 3-grams that it has had before, -1 … 0 (:func:`raftune.filters.repetition`);
    0 for fewer than three words."""

    name: str = "repetition"

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        return [-repetition(text) for text in texts_of(self.name, candidates)]
