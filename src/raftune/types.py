"""The words of the project, frozen: Prompt, Candidate, Scored, Ranking, Round. No torch here.

A modality adds its own output type beside :class:`Text`; nothing outside its Sampler, Reward, Learner and Codec looks
inside an output.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = Mapping[str, str]
"""One turn of a chat: ``{"role": "user", "content": "…"}``."""
Content = str | tuple[Message, ...]
"""What a prompt says: a text, or the turns of a chat."""


@dataclass(frozen=True)
class Prompt:
    """One input with a stable ``id``; ``columns`` travel with it to the reward (reference answer, label …)."""

    id: str
    content: Content
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.content, str)


@dataclass(frozen=True)
class Text:
    """A sampled text. ``token_ids`` is what the policy drew (end-of-sequence included where it finished).

    ``token_ids`` and ``token_logprobs`` are None where the source does not tell them (a person, an endpoint).
    ``finish_reason``: "stop" (end-of-sequence or a stop string) or "length" (``max_new_tokens`` reached).
    """

    text: str
    token_ids: tuple[int, ...] | None = None
    token_logprobs: tuple[float, ...] | None = None
    finish_reason: str = "stop"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Candidate:
    """One sampled output of one prompt. ``logprob``: log-probability in nats under the policy that drew it, untempered
    and untruncated, summed over the output; None where the source does not tell it."""

    prompt: Prompt
    index: int
    output: Any
    source: str = "policy"
    logprob: float | None = None


@dataclass(frozen=True)
class Scored:
    """A candidate with its reward and the named parts of that reward. ``reward`` is None where it was not scored."""

    candidate: Candidate
    reward: float | None
    parts: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"reward must be finite or None (not scored), got {self.reward}")


@dataclass(frozen=True)
class Ranking:
    """One prompt's scored candidates, best first; those without a reward are in ``unscored``, in sampling order."""

    prompt: Prompt
    scored: tuple[Scored, ...]
    unscored: tuple[Scored, ...] = ()

    @property
    def all_tied(self) -> bool:
        """True where the reward tells nothing: two or more candidates, one reward."""
        return len(self.scored) > 1 and self.scored[0].reward == self.scored[-1].reward


@dataclass(frozen=True)
class Round:
    """One sample → rank → tune, committed. ``policy`` is the checkpoint it ended with. ``scored`` and ``chosen`` lie on
    disk and are decoded while they are iterated."""

    number: int
    scored: Sequence[Scored]
    chosen: Sequence[Scored]
    policy: str
    metrics: Mapping[str, float]

    @property
    def reward_mean(self) -> float | None:
        """Mean reward over all scored candidates of the round, or None if none was scored."""
        return self.metrics.get("sample/reward_mean")

    @property
    def chosen_reward_mean(self) -> float | None:
        """Mean reward over what was chosen."""
        return self.metrics.get("chosen/reward_mean")


def mean_reward(scored: Sequence[Scored]) -> float | None:
    """Mean over the rewards that exist; None where there is none."""
    rewards = [s.reward for s in scored if s.reward is not None]
    return math.fsum(rewards) / len(rewards) if rewards else None


Policy = str | Path
"""A checkpoint: a local folder or hub id in the ecosystem's own format, or ``asset:NAME``."""


def digest(*address: object) -> bytes:
    """16 bytes that depend on every part of ``address`` and on nothing else (BLAKE2b over their reprs)."""
    return hashlib.blake2b(repr(address).encode(), digest_size=16).digest()


def seed_of(*address: object) -> int:
    """A 63-bit seed with an address, ``seed_of(run_seed, round, prompt.id, index)``: never the global generator."""
    return int.from_bytes(digest(*address)[:8], "little") >> 1
