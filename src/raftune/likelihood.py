"""How likely a policy finds outputs: one teacher-forced pass over prompt and output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from . import progress
from .batches import Pair, collate, output_logprobs, sizes, within_budget
from .models import attend
from .resident import causal
from .tokens import encode_prompt, output_ids
from .types import Candidate, Policy

BATCH_TOKENS = 4096


def logprobs(policy: Policy, candidates: Sequence[Candidate]) -> list[tuple[float, int]]:
    """Of each output: its log-probability in nats given its prompt under ``policy``, and its number of tokens."""
    model, tokenizer = causal(policy)
    pairs = [
        (encode_prompt(tokenizer, c.prompt), output_ids(tokenizer, c.output, c.prompt.is_chat)) for c in candidates
    ]
    return _of_pairs(model, pairs)


def perplexity(policy: Policy, pairs: Sequence[Pair]) -> float:
    """exp of the mean negative log-likelihood of an output token, given its prompt and the output before it."""
    found = _of_pairs(causal(policy)[0], pairs)
    return math.exp(-math.fsum(total for total, _ in found) / sum(count for _, count in found))


def _of_pairs(model: Any, pairs: Sequence[Pair]) -> list[tuple[float, int]]:
    rows_with_output = [row for row, (_, output) in enumerate(pairs) if output]
    totals = [(0.0, 0)] * len(pairs)
    attend(model, max((sum(sizes(pair)) for pair in pairs), default=0))
    with progress.bar("read", len(rows_with_output)) as advance, torch.inference_mode():
        for rows in within_budget(rows_with_output, lambda row: sizes(pairs[row]), BATCH_TOKENS):
            batch = collate([pairs[row] for row in rows], model.device)
            for row, total in zip(rows, output_logprobs(model, batch).sum(-1).tolist(), strict=True):
                totals[row] = (total, len(pairs[row][1]))
            advance(len(rows))
    return totals


def fits(policy: Policy, candidates: Sequence[Candidate]) -> list[bool]:
    """Of each candidate: is its prompt with its output within the context of ``policy``? True where it tells none."""
    model, tokenizer = causal(policy)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    lengths = [
        len(encode_prompt(tokenizer, c.prompt)) + len(output_ids(tokenizer, c.output, c.prompt.is_chat))
        for c in candidates
    ]
    return [limit is None or length <= limit for length in lengths]
