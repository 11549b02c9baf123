"""The best-of-n curve: what sampling n outputs and keeping the best would give. Pure functions, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..types import Scored, mean_reward


def expected_best(rewards: Sequence[float], n: int) -> float:
    """The mean over all n-subsets of ``rewards`` of their largest: unbiased for the expected best of n fresh draws.

    Of N sorted rewards the i-th is the largest of C(i-1, n-1) of the C(N, n) subsets. 1 ≤ n ≤ N.
    """
    subsets = math.comb(len(rewards), n)
    return math.fsum(
        reward * (math.comb(below, n - 1) / subsets) for below, reward in enumerate(sorted(rewards)) if below >= n - 1
    )


def curve(scored: Sequence[Scored]) -> dict[int, float]:
    """n → expected best of n, meaned over prompts, for n = 1, 2, 4, … up to the number N of outputs per prompt.

    A prompt of which not all N outputs have a reward is left out whole, so that every point of the curve is about the
    same prompts; empty where none is left.
    """
    groups: dict[str, list[float | None]] = {}
    for one in scored:
        groups.setdefault(one.candidate.prompt.id, []).append(one.reward)
    most = max(map(len, groups.values()), default=0)
    known = [[reward for reward in rewards if reward is not None] for rewards in groups.values()]
    whole = [rewards for rewards in known if len(rewards) == most]
    sizes = [2**power for power in range(most.bit_length())] if whole else []
    return {n: math.fsum(expected_best(rewards, n) for rewards in whole) / len(whole) for n in sizes}


def figures(scored: Sequence[Scored]) -> dict[str, float]:
    """``reward_mean`` over all that was scored, and ``best_of_<n>`` for n = 2, 4, …; absent where not measured."""
    reward = mean_reward(scored)
    found = {} if reward is None else {"reward_mean": reward}
    return found | {f"best_of_{n}": value for n, value in curve(scored).items() if n > 1}
