"""Sessions of a comparison: how far its ratios lie apart between them, and what a further session should find.

The turns of one session share what the machine was like that day, so their least and most say little of another day.
Of all comparisons of a machine together, the deviation of a ratio's logarithm between sessions is pooled: few sessions,
but many ratios.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum, log, sqrt
from statistics import fmean, median
from typing import Any

from paired import OURS
from ratios import Spread, ratios, short

DEVIATIONS = 2  # of what is expected: 19 of 20, were ratios spread like a bell


@dataclass(frozen=True)
class Compared:
    """The ratio of a case and peer in each session, oldest first: the median of its turns."""

    comparison: str
    case: str
    peer: str
    found: tuple[float, ...]

    @property
    def before(self) -> Compared:
        """As it stood before the latest session."""
        return Compared(self.comparison, self.case, self.peer, self.found[:-1])


def compared(records: Mapping[str, dict[str, Any]]) -> list[Compared]:
    """Every ratio of some comparisons by their names."""
    return [
        Compared(name, case, peer, tuple(median(turns) for turns in by_session(record, case, peer)))
        for name, record in records.items()
        for case, found in record["cases"].items()
        for peer in found["runs"]
        if peer != OURS and OURS in found["runs"]
    ]


def by_session(record: dict[str, Any], case: str, peer: str) -> list[list[float]]:
    """The ratios of the turns of each session."""
    found, key = record["cases"][case], record["compared"]
    values = [[run[key] for run in found["runs"][side]] for side in (OURS, peer)]
    left = ratios(*values, record["smaller_is_better"])
    return [[left.pop(0) for _ in range(session["turns"])] for session in found["sessions"]]


def deviation(some: Iterable[Compared]) -> float | None:
    """Pooled standard deviation of the ratios' logarithms between sessions; None where no ratio has two."""
    squares, free = [], 0
    for one in some:
        logs = [log(ratio) for ratio in one.found]
        squares += [(value - fmean(logs)) ** 2 for value in logs]
        free += len(logs) - 1
    return sqrt(fsum(squares) / free) if free else None


def expected(one: Compared, apart: float) -> Spread:
    """Where the median of a further session is to lie, ``apart`` being the deviation between sessions."""
    middle = fmean(log(ratio) for ratio in one.found)
    width = DEVIATIONS * apart * sqrt(1 + 1 / len(one.found))
    return Spread(exp(middle), exp(middle - width), exp(middle + width))


@dataclass(frozen=True)
class Again:
    """The latest session against what those before it let expect: how many ratios, which of them lie outside."""

    ratios: int
    outside: Sequence[tuple[Compared, Spread]]

    def __str__(self) -> str:
        said = [
            f"{one.comparison}, {one.case}, {one.peer}: {short(one.found[-1])} instead of {wanted}"
            for one, wanted in self.outside
        ]
        inside = f"{self.ratios - len(self.outside)} of {self.ratios} ratios of the latest session lie where expected"
        return f"{inside}; outside: {'; '.join(said)}" if said else inside


def again(some: Sequence[Compared]) -> Again | None:
    """None before the third session: the first two say how far sessions lie apart."""
    later = [one for one in some if len(one.found) >= 3]
    apart = deviation(one.before for one in later)
    if apart is None:
        return None
    wanted = [(one, expected(one.before, apart)) for one in later]
    return Again(len(later), [(one, where) for one, where in wanted if not where.low <= one.found[-1] <= where.high])


def told(some: Sequence[Compared]) -> str | None:
    """How far sessions lie apart, and whether the latest came as expected; None with a single session."""
    apart = deviation(some)
    if apart is None:
        return None
    counts = sorted({len(one.found) for one in some})
    many = "–".join(dict.fromkeys((str(counts[0]), str(counts[-1]))))
    pooled = f"standard deviation, {len(some)} ratios pooled"
    latest = again(some) or "Whether a session comes as expected shows with the third"
    return f"{many} sessions; between them a ratio differs by {100 * apart:.1f} % ({pooled}). {latest}."
