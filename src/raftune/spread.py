"""A figure over seeds. Pure, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean, sample standard deviation (NaN of one), number of seeds."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def over(cls, values: Sequence[float]) -> Spread:
        return cls(mean(values), stdev(values) if len(values) > 1 else math.nan, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3g}" + ("" if math.isnan(self.deviation) else f" ± {self.deviation:.2g}")
