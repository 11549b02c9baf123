"""Evaluation of a text policy on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..likelihood import fits, logprobs
from ..types import Candidate, Policy, Scored, Text
from . import best_of_n
from .diversity import distinct, msttr, unique


def describe(candidates: Sequence[Candidate], seconds: float | None = None) -> dict[str, float]:
    """Diversity and length of outputs: ``distinct_1``, ``distinct_2``, ``unique_1``, ``unique_2``, ``msttr_100``,
    ``length_mean`` (tokens), ``finished`` (share that ended by itself), ``tokens_per_s`` where they took ``seconds``.
    Absent where it cannot be measured."""
    texts = [candidate.output.text for candidate in candidates]
    lengths = [len(c.output.token_ids) for c in candidates if c.output.token_ids is not None]
    figures = {
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "unique_1": unique(texts, 1),
        "unique_2": unique(texts, 2),
        "msttr_100": msttr(texts),
        "length_mean": sum(lengths) / len(lengths) if lengths else None,
        "tokens_per_s": sum(lengths) / seconds if lengths and seconds else None,
        "finished": sum(c.output.finish_reason == "stop" for c in candidates) / len(candidates) if candidates else None,
    }
    return {name: value for name, value in figures.items() if value is not None}


def appraise(scored: Sequence[Scored], policy: Policy, initial: Policy, reference: str) -> dict[str, float]:
    """Held-out figures of what ``policy`` drew: ``reward_mean``, ``best_of_<n>``, what :func:`describe` tells,
    ``perplexity``, ``kl``, and :func:`on_references` of the prompts' column ``reference``.

    ``perplexity`` of the outputs under the initial model: exp of the mean negative log-likelihood per token (fluency).
    ``kl``: sampled estimate of KL(policy ‖ initial) in nats per output, the mean over outputs of
    log p_policy − log p_initial; exact draws from the policy are needed, so temperature 1 without truncation.
    """
    candidates = [one.candidate for one in scored]
    figures = describe(candidates) | best_of_n.figures(scored)
    figures |= on_references(policy, candidates, reference)  # first: the policy that drew is still in memory
    under_initial = logprobs(initial, candidates)
    tokens = sum(count for _, count in under_initial)
    if tokens:
        figures["perplexity"] = math.exp(-math.fsum(total for total, _ in under_initial) / tokens)
    own = [candidate.logprob for candidate in candidates]
    gaps = [mine - total for mine, (total, _) in zip(own, under_initial, strict=True) if mine is not None]
    if gaps:
        figures["kl"] = math.fsum(gaps) / len(gaps)
    return figures


def on_references(policy: Policy, candidates: Sequence[Candidate], column: str) -> dict[str, float]:
    """``reference_perplexity``: perplexity per token of ``policy`` on answers that the prompts bring along, without an
    end-of-sequence of ours; ``references``: on how many. Absent where there is none.

    ``column`` holds a text, or several in a list. Answers that are empty, no text, or together with their prompt longer
    than the model's context are left out.
    """
    prompts = {candidate.prompt.id: candidate.prompt for candidate in candidates}.values()
    answers = [
        Candidate(prompt, index, Text(answer, finish_reason="length"), "reference")
        for prompt in prompts
        for index, answer in enumerate(_listed(prompt.columns.get(column)))
        if isinstance(answer, str)
    ]
    if not answers:
        return {}
    usable = [answer for answer, fit in zip(answers, fits(policy, answers), strict=True) if fit]
    measured = [(total, count) for total, count in logprobs(policy, usable) if count]
    if not measured:
        return {}
    nll = -math.fsum(total for total, _ in measured) / sum(count for _, count in measured)
    return {"reference_perplexity": math.exp(nll), "references": len(measured)}


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
