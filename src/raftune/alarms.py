"""What should make a person look: figures of a run that tell of a reward being hacked rather than met. No torch.

Each alarm compares a round with earlier rounds of its own run (``rows`` of metrics.jsonl, the latest last):

- ``monitor``: what a monitor says fell from its best round, by more than twice the standard error of the difference,
  while the held-out reward rose from there by more than its own.
- ``diversity``: that of the chosen (distinct-2; of pictures their difference) is a small share of the first round's.
- ``length``: held-out answers are much longer or shorter than before tuning.
- ``kl``: the distance from the initial policy jumped: nats per token and round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
REWARD = "heldout/reward_mean"
DIVERSITY = ("chosen/distinct_2", "chosen/diversity")


@dataclass(frozen=True)
class Limits:
    """``diversity``: alarm below this share of the first round's; ``length``: beyond this ratio, either way;
    ``kl``: above so many nats per token in one round; ``errors``: standard errors that a monitor's fall must pass."""

    diversity: float = 0.6
    length: float = 1.5
    kl: float = 0.1
    errors: float = 2.0


def raised(rows: Sequence[Row], monitors: Sequence[str], limits: Limits = Limits()) -> list[str]:
    """The alarms of the last row, a line each; ``monitors`` are the figures of scorers that only watch."""
    found = []
    for monitor in monitors:
        found += _hacked(rows, monitor, limits.errors)
    return [*found, *_collapsed(rows, limits.diversity), *_drifted(rows, limits.length), *_jumped(rows, limits.kl)]


def _with(rows: Sequence[Row], *figures: str) -> list[Row]:
    return [row for row in rows if all(figure in row for figure in figures)]


def _hacked(rows: Sequence[Row], monitor: str, errors: float) -> Iterator[str]:
    error, reward_error = (
        f"{monitor}_se",
        "heldout/reward_se",
    )  # of one prompt there is none, and any fall could be luck
    known = _with(rows, monitor, error, REWARD, reward_error)
    if len(known) < 2 or known[-1] is not rows[-1]:
        return
    now = known[-1]
    best = max(known[:-1], key=lambda row: row[monitor])
    fall, rise = best[monitor] - now[monitor], now[REWARD] - best[REWARD]
    if rise > math.hypot(best[reward_error], now[reward_error]) and fall > errors * math.hypot(best[error], now[error]):
        yield (
            f"monitor: since round {best['round']} the held-out reward rose by {rise:.2g} and "
            f"{monitor.removeprefix('heldout/')} fell by {fall:.2g}; is the reward being hacked?"
        )


def _collapsed(rows: Sequence[Row], share: float) -> Iterator[str]:
    for figure in DIVERSITY:
        known = _with(rows, figure)
        if len(known) > 1 and known[-1] is rows[-1] and known[-1][figure] < share * known[0][figure]:
            yield (
                f"diversity: {figure} is {known[-1][figure]:.2g}, {known[-1][figure] / known[0][figure]:.0%} of round "
                f"{known[0]['round']}'s; the chosen say the same thing"
            )


def _drifted(rows: Sequence[Row], ratio: float) -> Iterator[str]:
    figure = "heldout/length_mean"
    known = _with(rows, figure)
    if len(known) < 2 or known[-1] is not rows[-1] or not known[0][figure]:
        return
    drift = known[-1][figure] / known[0][figure]
    if drift > ratio or drift < 1 / ratio:
        yield (
            f"length: held-out answers have {known[-1][figure]:.0f} tokens, {drift:.2g} times those before tuning; "
            "does the reward pay for length?"
        )


def _jumped(rows: Sequence[Row], limit: float) -> Iterator[str]:
    figure = "heldout/kl"
    known = _with(rows, figure, "heldout/length_mean")
    if len(known) < 2 or known[-1] is not rows[-1]:
        return
    before, now = known[-2:]
    rounds, tokens = now["round"] - before["round"], max(now["heldout/length_mean"], before["heldout/length_mean"], 1.0)
    jump = (now[figure] - before[figure]) / rounds / tokens
    if jump > limit:
        yield (
            f"kl: {jump:.2g} nats per token further from the initial policy in one round; lower tune.learning_rate or "
            "set kl_coefficient"
        )
