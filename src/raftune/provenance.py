"""Who won how often: figures of candidates by their source. Pure functions, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .types import Scored, mean_reward

SHARE = "chosen/source/"


def by_source(scored: Sequence[Scored], chosen: Sequence[Scored]) -> dict[str, float]:
    """``chosen/source/<name>``: its share of the chosen; ``sample/source/<name>/reward_mean``: over its candidates.
    Nothing where there is one source only."""
    sources = list(dict.fromkeys(one.candidate.source for one in scored))
    if len(sources) < 2:
        return {}
    figures = {}
    for name in sources:
        if chosen:
            figures[f"{SHARE}{name}"] = sum(one.candidate.source == name for one in chosen) / len(chosen)
        if (mean := mean_reward([one for one in scored if one.candidate.source == name])) is not None:
            figures[f"sample/source/{name}/reward_mean"] = mean
    return figures


def in_words(figures: Mapping[str, Any]) -> str | None:
    """``policy 60 %, teacher 40 %``, the largest share first; None where there is one source only."""
    shares = {key.removeprefix(SHARE): value for key, value in figures.items() if key.startswith(SHARE)}
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ordered) or None
