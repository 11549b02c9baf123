"""Rewards that are disturbed on purpose, for the question how much noise in the reward a method bears.

- ``noise``: r + N(0, σ), drawn for each sample.
- ``prompt-bias``: r + b(prompt), b ~ N(0, σ), the same whenever the prompt comes. No ranking within a prompt sees it.
- ``sample-bias``: r + b(prompt, index), the same whenever the place comes.
- ``scale``: 10 r. ``shift``: r + 100. Neither changes what the rules ``best`` and ``top`` choose.

:class:`Disturbed` wraps another reward. For recipes the functions below do the same to VADER with σ = 1::

    reward: bench/disturbed.py:noise      # or prompt_bias, sample_bias, scaled, shifted
    evaluate: {judge: vader}              # the undisturbed figure: the held-out reward is disturbed too

No draw touches the global generator: each has an address made of the prompt's content, the candidate's index and, for
``noise``, the text. A function sees no index, but raftune hands it all candidates of a prompt in their order, so the
index is how often the prompt came before in the same call.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from raftune.protocols import Reward
from raftune.reward.sentiment import Vader
from raftune.types import Candidate, Prompt, Text, seed_of

KINDS = ("noise", "prompt-bias", "sample-bias", "scale", "shift")
SCALE, SHIFT = 10.0, 100.0
VADER = Vader()


@dataclass(frozen=True)
class Disturbed:
    """``reward`` with a disturbance of ``kind`` (one of ``KINDS``); ``sigma``: standard deviation of what is drawn.
    What was not scored stays so."""

    reward: Reward
    kind: str
    sigma: float = 1.0
    seed: int = 0

    @property
    def name(self) -> str:
        return self.reward.name

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        values = self.reward(candidates)
        return [
            None if value is None else self.disturb(value, candidate)
            for value, candidate in zip(values, candidates, strict=True)
        ]

    def disturb(self, value: float, candidate: Candidate) -> float:
        """The disturbed value of one candidate."""
        content = json.dumps(candidate.prompt.content)
        match self.kind:
            case "noise":
                return value + self._drawn(content, candidate.index, str(candidate.output))
            case "prompt-bias":
                return value + self._drawn(content)
            case "sample-bias":
                return value + self._drawn(content, candidate.index)
            case "scale":
                return value * SCALE
            case "shift":
                return value + SHIFT
        raise ValueError(f"{self.kind!r} is no disturbance; use one of {', '.join(KINDS)}")

    def _drawn(self, *address: object) -> float:
        return self.sigma * normal(self.kind, self.seed, *address)


def normal(*address: object) -> float:
    """A draw from N(0, 1) that depends on its address alone: the inverse CDF of 52 bits of a seed."""
    return NormalDist().inv_cdf(((seed_of(*address) >> 11) + 0.5) / 2**52)


def noise(prompts: list[Any], completions: list[Any], **columns: object) -> list[float | None]:
    return _vader("noise", prompts, completions)


def prompt_bias(prompts: list[Any], completions: list[Any], **columns: object) -> list[float | None]:
    return _vader("prompt-bias", prompts, completions)


def sample_bias(prompts: list[Any], completions: list[Any], **columns: object) -> list[float | None]:
    return _vader("sample-bias", prompts, completions)


def scaled(prompts: list[Any], completions: list[Any], **columns: object) -> list[float | None]:
    return _vader("scale", prompts, completions)


def shifted(prompts: list[Any], completions: list[Any], **columns: object) -> list[float | None]:
    return _vader("shift", prompts, completions)


def _vader(kind: str, prompts: list[Any], completions: list[Any]) -> list[float | None]:
    came: Counter[str] = Counter()
    candidates = []
    for prompt, completion in zip(prompts, completions, strict=True):
        content = json.dumps(prompt)
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        candidates.append(Candidate(Prompt(content, prompt), came[content], Text(text)))
        came[content] += 1
    return Disturbed(VADER, kind)(candidates)
