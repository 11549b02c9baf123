"""Win, tie, loss of two policies on the same prompts, and how sure that is. Pure functions, no torch.

An outcome is that of the first policy, A: 1 it won, ½ a tie, 0 it lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..types import seed_of

WIN, TIE, LOSS = 1.0, 0.5, 0.0
RESAMPLES = 4000
NORMAL_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile

Outcome = tuple[str, float]  # prompt id, outcome


@dataclass(frozen=True)
class Tally:
    """Counts of pairs; ``win_rate``: (wins + ½ ties) / pairs, with its 95 % ``interval`` and how that was found."""

    win: int
    tie: int
    loss: int
    prompts: int
    win_rate: float
    interval: tuple[float, float]
    interval_by: str

    @property
    def pairs(self) -> int:
        return self.win + self.tie + self.loss


def by_difference(a: float, b: float, margin: float = 0.0) -> float:
    """The outcome of two rewards: a tie where they differ by ``margin`` or less."""
    if abs(a - b) <= margin:
        return TIE
    return WIN if a > b else LOSS


def by_both_orders(a_first: str | None, b_first: str | None) -> float:
    """The outcome of two verdicts ("A": the first shown is better, "B": the second, else none): one where A's answer
    stood first, one where B's did. A win only where both say so, so that a love of one place decides nothing."""
    if (a_first, b_first) == ("A", "B"):
        return WIN
    return LOSS if (a_first, b_first) == ("B", "A") else TIE


def tally(outcomes: Sequence[Outcome], seed: int = 0) -> Tally | None:
    """Counts and win rate; None where nothing was compared.

    Outputs of one prompt are not independent, so prompts are resampled, not pairs (percentile bootstrap, 4000
    resamples addressed by ``seed``). Where all prompts say the same, resampling them shows no spread: then it is the
    Wilson score interval over the number of prompts.
    """
    if not outcomes:
        return None
    win, tie, loss = (sum(outcome == kind for _, outcome in outcomes) for kind in (WIN, TIE, LOSS))
    groups: dict[str, list[float]] = {}
    for prompt, outcome in outcomes:
        groups.setdefault(prompt, []).append(outcome)
    rate = math.fsum(outcome for _, outcome in outcomes) / len(outcomes)
    alike = len({math.fsum(group) / len(group) for group in groups.values()}) == 1
    interval = wilson(rate, len(groups)) if alike else bootstrap(list(groups.values()), seed)
    how = "Wilson over prompts" if alike else "bootstrap over prompts"
    return Tally(win, tie, loss, len(groups), rate, interval, how)


def bootstrap(groups: Sequence[Sequence[float]], seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the mean over all values, as many whole groups drawn with replacement."""
    sums, sizes = np.array([math.fsum(group) for group in groups]), np.array([len(group) for group in groups])
    generator = np.random.default_rng(seed_of(seed, "bootstrap"))
    rates = np.empty(resamples)
    for number in range(resamples):
        drawn = generator.integers(0, len(groups), len(groups))
        rates[number] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def wilson(rate: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share ``rate`` of ``count`` (Wilson 1927)."""
    squared = NORMAL_95**2
    centre = (rate + squared / (2 * count)) / (1 + squared / count)
    half = NORMAL_95 / (1 + squared / count) * math.sqrt(rate * (1 - rate) / count + squared / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
