"""Filters before ranking: what a filter takes out stays on disk and is never chosen. Of texts; no torch.

They work one after the other in the order of :class:`Filters`; a candidate counts at the first that it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import regex as patterns

from .columns import Keys, columns_of, skimmed, taken
from .errors import UserError
from .protocols import Select
from .rank import NothingChosen
from .types import Scored, Text

OPEN = 1024  # prompts whose texts are remembered, and those that still have some to come
SECONDS = 1.0  # of CPU time, for one search


@dataclass(frozen=True)
class Filters:
    """What an output must be to be ranked. What is None or False takes out nothing.

    Args:
        finished: it ended by itself or at a stop string, not at the limit of tokens.
        repetition: at most this share of its word 3-grams is repeated (see :func:`repetition`).
        length: from so many to so many words (between white space); None: no upper bound.
        deduplicate: of the outputs of a prompt that are equal but for white space only the first counts; one without
            a reward takes no other's place.
        regex: this pattern (of the package ``regex``) is found in it.
        without: this one is not.

    An output that a pattern is not done with in a second of CPU time falls to it: nobody knows whether it fits.
    """

    finished: bool = False
    repetition: float | None = None
    length: tuple[int, int | None] | None = None
    deduplicate: bool = False
    regex: str | None = None
    without: str | None = None

    def __post_init__(self) -> None:
        where = "select.filters"
        if self.repetition is not None and not 0 <= self.repetition <= 1:
            raise UserError(f"{where}.repetition: is a share between 0 and 1, got {self.repetition}")
        if self.length is not None:
            lo, hi = self.length
            if lo < 0 or (hi is not None and hi < lo):
                raise UserError(f"{where}.length: [least, most] words with 0 ≤ least ≤ most, got [{lo}, {hi}]")
        for name in ("regex", "without"):
            if (pattern := getattr(self, name)) is not None:
                compiled(f"{where}.{name}", pattern)

    def sift(self, scored: Sequence[Scored]) -> tuple[Sequence[Scored], dict[str, int]]:
        """What is left, in order, and how many fell to each filter that is set."""
        steps = dict(self._steps(columns_of(scored).keys))
        fallen, left = dict.fromkeys(steps, 0), np.ones(len(scored), bool)
        for row, one in enumerate(skimmed(scored) if steps else ()):
            failed = next((name for name, passes in steps.items() if not passes(row, one)), None)
            if failed is not None:
                fallen[failed] += 1
                left[row] = False
        return taken(scored, np.flatnonzero(left)), fallen

    def _steps(self, keys: Keys) -> Iterator[tuple[str, Callable[[int, Scored], bool]]]:
        if self.finished:
            yield "finished", lambda _, one: _output(one).finish_reason == "stop"
        if (most := self.repetition) is not None:
            yield "repetition", lambda _, one: repetition(_output(one).text) <= most
        if self.length is not None:
            lo, hi = self.length
            yield "length", lambda _, one: _within(len(_output(one).text.split()), lo, hi)
        if self.deduplicate:
            yield "deduplicate", _first_of_equals(keys)
        if (wanted := self.regex) is not None:
            yield "regex", lambda _, one: search(wanted, _output(one).text) is True
        if (unwanted := self.without) is not None:
            yield "without", lambda _, one: search(unwanted, _output(one).text) is False


@dataclass(frozen=True)
class Filtered:
    """``rule`` among those that pass ``filters``."""

    rule: Select
    filters: Filters

    def __call__(self, scored: Sequence[Scored], seed: tuple[object, ...] = ()) -> Sequence[Scored]:
        """Raises NothingChosen, saying how many fell to which filter."""
        left, fallen = self.filters.sift(scored)
        chosen = self.rule(left, seed) if left else []
        if not chosen:
            counts = ", ".join(f"{name} {count}" for name, count in fallen.items())
            missing = columns_of(left).unscored
            raise NothingChosen(
                f"select: the filters took {len(scored) - len(left)} of {len(scored)} candidates ({counts}) and "
                f"{self.rule} chose none of the others ({missing} without a reward); loosen filters or rule, or look "
                "at the outputs"
            )
        return chosen


def repetition(text: str, n: int = 3) -> float:
    """Share of the text's word n-grams that it has had before: 1 - different n-grams / n-grams, 0 … 1.

    0 for fewer than ``n`` words. Words are what white space separates, as they are written.
    """
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def compiled(where: str, pattern: str) -> patterns.Pattern[str]:
    """UserError names ``where`` a pattern is wrong."""
    try:
        return patterns.compile(pattern)
    except patterns.error as error:
        raise UserError(f"{where}: {pattern!r} is not a pattern: {error}") from None


def search(pattern: str, text: str, seconds: float = SECONDS) -> bool | None:
    """Is the pattern found in the text? None where that takes more CPU time, as patterns that backtrack can."""
    try:
        return patterns.compile(pattern).search(text, timeout=seconds) is not None
    except TimeoutError:
        return None


def _output(one: Scored) -> Text:
    if not isinstance(one.candidate.output, Text):
        raise UserError(f"select.filters: are for texts; the output of prompt {one.candidate.prompt.id!r} is none")
    return one.candidate.output


def _within(words: int, lo: int, hi: int | None) -> bool:
    return lo <= words and (hi is None or words <= hi)


def _first_of_equals(keys: Keys) -> Callable[[int, Scored], bool]:
    """Asked row by row; what a prompt had is forgotten some time after its last row."""
    last = np.zeros(len(keys.ids), np.int64)
    np.maximum.at(last, keys.prompt, np.arange(len(keys.prompt)))
    seen: dict[int, set[str]] = {}

    def passes(row: int, one: Scored) -> bool:
        prompt = int(keys.prompt[row])
        text = " ".join(_output(one).text.split())
        first = text not in seen.get(prompt, ())
        if one.reward is not None:
            seen.setdefault(prompt, set()).add(text)
        if len(seen) > OPEN:
            for over in [number for number in seen if last[number] <= row]:
                del seen[over]
        return first

    return passes
