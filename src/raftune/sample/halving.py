"""A sampler that stops where more draws cannot change what is chosen: verifiers, and a best that is already right.

The first few of a prompt's K, then as many again, and again, until the one that the rule would choose has a reward
that nothing can beat. The lower index wins among equals, so that one is chosen whatever is drawn after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..protocols import Select
from ..rank import NothingChosen
from ..score import Rewards
from ..types import Candidate, Policy, Prompt


class Ranged(Protocol):
    """A sampler that can begin at a later index."""

    def sample(
        self, policy: Policy, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...], first: int = 0
    ) -> list[Candidate]:
        """As :class:`raftune.protocols.Sampler`, with the indices ``first`` … ``first + k - 1``."""
        ...


@dataclass(frozen=True)
class Halving:
    """Draws ``first`` candidates of each prompt, then twice, four times … as many of those without a solution, up to k.

    A prompt is solved where ``select``, the loop's own rule (the best of each prompt), chooses a candidate whose
    ``reward`` is at least ``solved``, the highest there is. What is chosen in the end is then what it would be among
    all k. Each step reads its prompts again and the loop asks the rewards again: this pays for functions
    and verifiers, and answers that are long beside their prompts.
    """

    sampler: Ranged
    reward: Rewards
    select: Select
    solved: float
    first: int = 2

    def sample(self, policy: Policy, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        """Up to ``k`` candidates of each prompt, ``index`` from 0 without a gap, each drawn at the address it would
        have without halving; see :class:`raftune.protocols.Sampler`."""
        drawn: dict[str, list[Candidate]] = {prompt.id: [] for prompt in prompts}
        left, done, goal = list(prompts), 0, min(self.first, k)
        while left:
            for one in self.sampler.sample(policy, left, goal - done, seed, first=done):
                drawn[one.prompt.id].append(one)
            done, goal = goal, min(2 * goal, k)
            left = self._unsolved(left, drawn, seed) if done < k else []
        return [one for prompt in prompts for one in drawn[prompt.id]]

    def _unsolved(
        self, prompts: Sequence[Prompt], drawn: dict[str, list[Candidate]], seed: tuple[object, ...]
    ) -> list[Prompt]:
        scored = self.reward([one for prompt in prompts for one in drawn[prompt.id]])
        try:
            chosen = self.select(scored, seed)
        except NothingChosen:  # of filters
            return list(prompts)
        solved = {one.candidate.prompt.id for one in chosen if one.reward is not None and one.reward >= self.solved}
        return [prompt for prompt in prompts if prompt.id not in solved]
