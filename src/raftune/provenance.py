"""Who won how often: figures of candidates by their source. Pure functions, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .columns import columns_of, mean, sources_of
from .types import Scored

SHARE = "chosen/source/"


def by_source(scored: Sequence[Scored], chosen: Sequence[Scored]) -> dict[str, float]:
    """``chosen/source/<name>``: its share of the chosen; ``sample/source/<name>/reward_mean``: over its candidates.
    Nothing where there is one source only."""
    sources, names = sources_of(scored)
    if len(names) < 2:
        return {}
    figures, (winners, of_winners), columns = {}, sources_of(chosen), columns_of(scored)
    for number, name in enumerate(names):
        if len(chosen):
            won = np.count_nonzero(winners == of_winners.index(name)) if name in of_winners else 0
            figures[f"{SHARE}{name}"] = won / len(chosen)
        if (reward := mean(columns.reward[sources == number])) is not None:
            figures[f"sample/source/{name}/reward_mean"] = reward
    return figures


def in_words(figures: Mapping[str, Any]) -> str | None:
    """``policy 60 %, teacher 40 %``, the largest share first; None where there is one source only."""
    shares = {key.removeprefix(SHARE): value for key, value in figures.items() if key.startswith(SHARE)}
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ordered) or None
