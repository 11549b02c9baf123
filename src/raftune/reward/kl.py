"""How far a candidate is from what the initial policy would say: log(p/p0), the penalty of the KL-shaped reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..likelihood import logprobs
from ..types import Candidate, Policy


@dataclass(frozen=True)
class KlReward:
    """log p(output | prompt) - log p0(output | prompt), nats summed over the output: p from the sampler, p0 by one pass
    of the ``initial`` policy. Weighted with -β it makes r - β·log(p/p0) (paper, section 3, regularisation); its mean
    over samples estimates the KL divergence of the policy from the initial one.

    A candidate whose log-probability its source does not tell is not scored. The policy gives way to the initial one
    in memory: one model at a time, and exact whatever the initial policy is (the base of a LoRA, or an adapter).
    """

    initial: Policy
    name: str = "kl"

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        known = [candidate for candidate in candidates if candidate.logprob is not None]
        under_initial = iter(logprobs(self.initial, known))
        return [None if c.logprob is None else c.logprob - next(under_initial)[0] for c in candidates]
