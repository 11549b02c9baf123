"""Evaluation of a text policy on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..likelihood import logprobs
from ..types import Candidate, Policy, Scored, mean_reward
from .diversity import distinct, msttr


def describe(candidates: Sequence[Candidate], seconds: float | None = None) -> dict[str, float]:
    """Diversity and length of outputs: ``distinct_1``, ``distinct_2``, ``msttr_100``, ``length_mean`` (tokens),
    ``finished`` (share that ended by itself), ``tokens_per_s`` where they took ``seconds``. Absent where it cannot be
    measured."""
    texts = [candidate.output.text for candidate in candidates]
    lengths = [len(c.output.token_ids) for c in candidates if c.output.token_ids is not None]
    figures = {
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "msttr_100": msttr(texts),
        "length_mean": sum(lengths) / len(lengths) if lengths else None,
        "tokens_per_s": sum(lengths) / seconds if lengths and seconds else None,
        "finished": sum(c.output.finish_reason == "stop" for c in candidates) / len(candidates) if candidates else None,
    }
    return {name: value for name, value in figures.items() if value is not None}


def appraise(scored: Sequence[Scored], initial: Policy) -> dict[str, float]:
    """Held-out figures: ``reward_mean``, what :func:`describe` tells, ``perplexity`` and ``kl``.

    ``perplexity`` of the outputs under the initial model: exp of the mean negative log-likelihood per token (fluency).
    ``kl``: sampled estimate of KL(policy ‖ initial) in nats per output, the mean over outputs of
    log p_policy − log p_initial; exact draws from the policy are needed, so temperature 1 without truncation.
    """
    candidates = [one.candidate for one in scored]
    figures = describe(candidates)
    reward = mean_reward(scored)
    if reward is not None:
        figures["reward_mean"] = reward
    under_initial = logprobs(initial, candidates)
    tokens = sum(count for _, count in under_initial)
    if tokens:
        figures["perplexity"] = math.exp(-math.fsum(total for total, _ in under_initial) / tokens)
    own = [candidate.logprob for candidate in candidates]
    gaps = [mine - total for mine, (total, _) in zip(own, under_initial, strict=True) if mine is not None]
    if gaps:
        figures["kl"] = math.fsum(gaps) / len(gaps)
    return figures
