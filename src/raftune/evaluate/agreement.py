"""How far raters agree beyond chance. Pure functions, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def krippendorff(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's α of labels that only are the same or not (nominal; Krippendorff, Content Analysis, 4th ed.,
    chapter 12): 1 perfect agreement, 0 that of chance, below 0 less than chance.

    ``units``: what was said of each unit, in any number and by whomever; units with fewer than two labels say nothing.
    None where no two labels meet, or all of them are the same, so that there is nothing to agree on.
    """
    rated = [Counter(labels) for labels in units if len(labels) > 1]
    totals: Counter[Hashable] = Counter()
    disagreed = 0.0
    for labels in rated:
        count = labels.total()
        totals.update(labels)
        disagreed += (count * count - sum(number * number for number in labels.values())) / (count - 1)
    every = totals.total()
    expected = every * every - sum(number * number for number in totals.values())
    return 1 - (every - 1) * disagreed / expected if expected else None
