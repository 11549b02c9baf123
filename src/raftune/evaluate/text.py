"""Evaluation of a text policy on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..columns import keys_of, spread
from ..ledger import Candidates
from ..likelihood import fits, logprobs
from ..types import Candidate, Policy, Scored, Text
from . import best_of_n, diversity

MOST = 1 << 15  # outputs of which diversity is measured


def describe(candidates: Sequence[Candidate], seconds: float | None = None) -> dict[str, float]:
    """Diversity and length of outputs: ``distinct_1``, ``distinct_2``, ``unique_1``, ``unique_2``, ``msttr_100``,
    ``length_mean`` (tokens), ``finished`` (share that ended by itself), ``tokens_per_s`` where they took ``seconds``.
    Absent where it cannot be measured. Of more than 32,768 outputs diversity is that of every n-th prompt's, about so
    many; else its vocabulary would have to be in memory."""
    if not candidates:
        return {}
    rows = spread(keys_of(candidates).prompt, MOST)
    some = (candidates[row] for row in rows.tolist())
    if isinstance(candidates, Candidates):
        some, tally = candidates.take(rows).decoded(lists=False), _tally_on_disk(candidates)
    else:
        tally = _tally(candidates)
    figures = diversity.figures([one.output.text for one in some]) | {"finished": tally.finished / len(candidates)}
    if tally.told:
        figures["length_mean"] = tally.tokens / tally.told
    if tally.told and seconds:
        figures["tokens_per_s"] = tally.tokens / seconds
    return figures


class Tally(NamedTuple):
    """Of outputs: all their tokens, how many of them told theirs, and how many ended by themselves."""

    tokens: int
    told: int
    finished: int


def _tally(candidates: Sequence[Candidate]) -> Tally:
    lengths = [len(one.output.token_ids) for one in candidates if one.output.token_ids is not None]
    return Tally(sum(lengths), len(lengths), sum(one.output.finish_reason == "stop" for one in candidates))


def _tally_on_disk(candidates: Candidates) -> Tally:
    """The same from the columns of text (:class:`raftune.table.TextCodec`)."""
    tokens = told = finished = 0
    for _, batch in candidates.batches(["token_ids", "finish_reason"]):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        if (ids := columns.get("token_ids")) is not None:
            tokens += ids.value_lengths().sum().as_py() or 0
            told += len(ids) - ids.null_count
        reasons = columns.get("finish_reason")
        counts = {} if reasons is None else {one["values"]: one["counts"] for one in reasons.value_counts().to_pylist()}
        finished += batch.num_rows - sum(count for reason, count in counts.items() if (reason or "stop") != "stop")
    return Tally(tokens, told, finished)


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
