"""Figures of scored candidates: means of the reward's parts, what monitors said, standard errors. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from statistics import mean, stdev

import numpy as np

from .columns import columns_of, known, prompts_in, untold
from .filters import Filtered
from .protocols import Select
from .score import Rewards
from .types import Scored

MEAN = "reward_mean"
Value = Callable[[Scored], float | None]
RESERVED = {"heldout", "sample", "chosen", "select", "tune", "time", "memory", "round"}  # sections of a round's figures
OWN = re.compile(  # held-out figures that are there without any monitor: none may be called like them
    r"reward(_mean|_se|_version)?|perplexity|kl|reference_perplexity|references|(distinct|unique|msttr|best_of)_\d+"
    r"|length_mean|finished|diversity|flagged|\w+_per_s"
)


def watched(monitors: Sequence[str], further: Sequence[str]) -> list[str]:
    """The figures that a person wants to see besides the held-out reward: what monitors say, or else the reward, on
    every set of prompts (``further`` names those beside the held-out ones)."""
    if not monitors:
        return [f"{probe}/{MEAN}" for probe in further]
    return [f"{probe}/{name}" for probe in ("heldout", *further) for name in monitors]


def part_means(scored: Sequence[Scored]) -> dict[str, float]:
    """``reward/<name>``: the mean of each part before weights and normalisation."""
    found = {name: known(part) for name, part in columns_of(scored).parts.items()}
    return {f"reward/{name}": sum(values) / len(values) for name, values in found.items() if len(values)}


def said_of(scored: Sequence[Scored], monitors: Rewards | None) -> dict[str, float]:
    """The means of the reward's parts, ``reward/<name>``, and of what monitors said, ``<name>``; ``reward_se`` and
    ``<name>_se``, the standard errors of the reward's mean and of the monitors'."""
    means = part_means(scored)
    errors = {"reward_se": standard_error(scored, lambda one: one.reward)}
    for name in [monitor.reward.name for monitor in monitors.members] if monitors else ():
        if f"reward/{name}" in means:
            means[name] = means.pop(f"reward/{name}")
            errors[f"{name}_se"] = standard_error(scored, lambda one, name=name: one.parts[name])
    return means | {name: error for name, error in errors.items() if error is not None}


def standard_error(scored: Sequence[Scored], value: Value) -> float | None:
    """Of the mean over prompts, of each prompt's own mean: outputs of one prompt are no independent draws. None of
    fewer than two prompts."""
    by_prompt: dict[str, list[float]] = {}
    for one in scored:
        if (number := value(one)) is not None:
            by_prompt.setdefault(one.candidate.prompt.id, []).append(number)
    if len(by_prompt) < 2:
        return None
    return stdev([mean(values) for values in by_prompt.values()]) / math.sqrt(len(by_prompt))


def spared(scored: Sequence[Scored], k: int) -> dict[str, float]:
    """``stopped_prompts``: those with fewer than ``k`` candidates; ``spared``: how many candidates were not drawn."""
    counts_B = np.bincount(columns_of(scored).keys.prompt)
    return {"stopped_prompts": int((counts_B < k).sum()), "spared": int((k - counts_B).sum())}


def selection(scored: Sequence[Scored], select: Select) -> dict[str, float]:
    """``filtered/<name>``: candidates that fell to a filter; ``filtered_prompts``: prompts left without any;
    ``tied_prompts`` and ``unscored_prompts``: those among the rest whose ranking tells nothing."""
    left, fallen = select.filters.sift(scored) if isinstance(select, Filtered) else (scored, {})
    columns = columns_of(left)
    counts: dict[str, float] = {f"filtered/{name}": count for name, count in fallen.items()}
    if fallen:
        counts["filtered_prompts"] = prompts_in(columns_of(scored).keys) - prompts_in(columns.keys)
    tied, unscored = untold(columns)
    return counts | {"tied_prompts": tied, "unscored_prompts": unscored}
