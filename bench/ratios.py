"""Figures of runs: spreads, the ratio of each pair, when a target was reached, ratios that are only bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, median_high


@dataclass(frozen=True)
class Spread:
    """Median, least and most of some figures. ``bound``: the median is a lower bound, ``high_bound``: the most is, as
    some were not seen to end."""

    middle: float
    low: float
    high: float
    bound: bool = False
    high_bound: bool = False

    def __str__(self) -> str:
        if self.bound:
            return f"> {short(self.middle)}"
        if short(self.low) == short(self.high):
            return short(self.middle)
        return f"{short(self.middle)} ({short(self.low)} – {'> ' if self.high_bound else ''}{short(self.high)})"


@dataclass(frozen=True)
class Reached:
    """Seconds and samples to a target; ``bound``: so many passed without it, it needs more."""

    seconds: float
    samples: float
    bound: bool = False


def short(value: float) -> str:
    """Three significant digits (more would be noise), no exponent."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 or rounded == int(rounded) else f"{rounded:g}"


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def ratios(ours: Sequence[float], peer: Sequence[float], smaller_is_better: bool) -> list[float]:
    """One a pair; over 1: ours is better."""
    pairs = zip(ours, peer, strict=True)
    return [theirs / mine if smaller_is_better else mine / theirs for mine, theirs in pairs]


def reached(
    target: float, evaluated: dict[int, float], step_seconds: Sequence[float], samples_per_step: float
) -> Reached:
    """When the held-out reward first stood at ``target``; ``evaluated``: reward by step (0: before training).

    Of the steps between an evaluation below and one at the target the first counts: whoever is evaluated more rarely
    has no harm of it. A run that never stands there has a bound: all its seconds.
    """
    below = 0
    for step in sorted(evaluated):
        if evaluated[step] >= target:
            first = min(below + 1, step)
            return Reached(sum(step_seconds[:first]), first * samples_per_step)
        below = step
    return Reached(sum(step_seconds), len(step_seconds) * samples_per_step, bound=True)


def slower(ours: Sequence[Reached], peer: Sequence[Reached]) -> Spread:
    """How many times longer the peer took, seed by seed. Where the peer was stopped, its ratio is a bound, and so is
    the median unless every bound lies above it. ValueError where ours did not arrive: then there is no ratio."""
    if any(one.bound for one in ours):
        raise ValueError("ours did not reach the target on every seed")
    values = [theirs.seconds / mine.seconds for mine, theirs in zip(ours, peer, strict=True)]
    bounds = [value for value, one in zip(values, peer, strict=True) if one.bound]
    bound = any(value <= median_high(values) for value in bounds)
    return Spread(median(values), min(values), max(values), bound, bool(bounds))
