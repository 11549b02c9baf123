"""Evaluation of a text policy on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .. import progress
from ..batches import Pair, collate, output_logprobs, sizes, within_budget
from ..models import causal
from ..tokens import encode_prompt, output_ids
from ..types import Candidate, Policy, Scored, mean_reward
from .diversity import distinct, msttr

BATCH_TOKENS = 4096


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


def judge(scored: Sequence[Scored], initial: Policy) -> dict[str, float]:
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


def logprobs(policy: Policy, candidates: Sequence[Candidate]) -> list[tuple[float, int]]:
    """Of each output: its log-probability in nats given its prompt under ``policy``, and its number of tokens."""
    model, tokenizer = causal(policy)
    pairs = [(encode_prompt(tokenizer, c.prompt), output_ids(tokenizer, c.output)) for c in candidates]
    return _pair_logprobs(model, pairs)


def perplexity(policy: Policy, pairs: Sequence[Pair]) -> float:
    """exp of the mean negative log-likelihood of an output token, given its prompt and the output before it."""
    found = _pair_logprobs(causal(policy)[0], pairs)
    return math.exp(-math.fsum(total for total, _ in found) / sum(count for _, count in found))


def _pair_logprobs(model: Any, pairs: Sequence[Pair]) -> list[tuple[float, int]]:
    rows_with_output = [row for row, (_, output) in enumerate(pairs) if output]
    totals = [(0.0, 0)] * len(pairs)
    with progress.bar("evaluate", len(rows_with_output)) as advance, torch.inference_mode():
        for rows in within_budget(rows_with_output, lambda row: sizes(pairs[row]), BATCH_TOKENS):
            batch = collate([pairs[row] for row in rows], model.device)
            for row, total in zip(rows, output_logprobs(model, batch).sum(-1).tolist(), strict=True):
                totals[row] = (total, len(pairs[row][1]))
            advance(len(rows))
    return totals
