"""Rewards that are disturbed on purpose, for the question how much noise in the reward a method bears.

As in the paper's appendix on noisy rewards (A.3), times σ:

- ``noise``: r + N(0, 1), drawn for each sample.
- ``prompt-bias``: r + N(a, 1); one prompt in five has a bias a of -0.75, -0.25, 0.5 or 1, the others none.
- ``sample-bias``: the same with a bias of each sample instead of each prompt.
- ``scale``: 10 r. ``shift``: r + 100. Neither changes what the rules ``best`` and ``top`` choose.

:class:`Disturbed` wraps another reward. For recipes the functions below do the same to VADER with σ = 1::

    reward: bench/disturbed.py:noise      # or prompt_bias, sample_bias, scaled, shifted
    evaluate: {monitor: vader}            # the undisturbed figure: the held-out reward is disturbed too

No draw touches the global generator: each has an address made of the prompt's content, the candidate's index and its
text. A function sees no index, but raftune hands it all candidates of a prompt in their order, so the
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
BIASED, BIASES = 0.2, (-0.75, -0.25, 0.5, 1.0)
VADER = Vader()


@dataclass(frozen=True)
class Disturbed:
    """``reward`` with a disturbance of ``kind`` (one of ``KINDS``); ``sigma``: times what is drawn.
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
        sample = (content, candidate.index, str(candidate.output))
        match self.kind:
            case "noise":
                return value + self.sigma * normal(self.seed, *sample)
            case "prompt-bias":
                return value + self.sigma * (bias(self.seed, content) + normal(self.seed, *sample))
            case "sample-bias":
                return value + self.sigma * (bias(self.seed, *sample) + normal(self.seed, *sample))
            case "scale":
                return value * SCALE
            case "shift":
                return value + SHIFT
        raise ValueError(f"{self.kind!r} is no disturbance; use one of {', '.join(KINDS)}")


def uniform(*address: object) -> float:
    """A draw from (0, 1) that depends on its address alone."""
    return ((seed_of(*address) >> 11) + 0.5) / 2**52


def normal(*address: object) -> float:
    """A draw from N(0, 1) that depends on its address alone."""
    return NormalDist().inv_cdf(uniform("normal", *address))


def bias(*address: object) -> float:
    """One of ``BIASES`` with probability ``BIASED``, else 0."""
    drawn = uniform("bias", *address)
    return BIASES[int(drawn / BIASED * len(BIASES))] if drawn < BIASED else 0.0


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
