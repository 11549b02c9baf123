"""Decode K continuations of each prompt: prefill once, share the prefix, let finished rows leave.

Shapes: B prompts, N rows (continuations, sorted by prompt), P prompt positions (left-padded), T new tokens,
V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from ..models import Tokenizer
from .attention import SharedPrefix
from .draw import Temper, draw

COMPACT_BELOW = 0.9  # rows leave the batch once fewer than this share of them still decode


@dataclass(frozen=True)
class Work:
    """One batch: prompts, which prompt each row continues (ascending), and each row's uniforms ``[N, T]``."""

    prompt_ids: Sequence[Sequence[int]]
    owner: Sequence[int]
    uniforms_NT: np.ndarray

    def __post_init__(self) -> None:
        if list(self.owner) != sorted(self.owner):  # rows of a prompt find its cache by their place
            raise ValueError("rows must be sorted by prompt")


@dataclass(frozen=True)
class Drawn:
    """One row's result: what was drawn, with log-probabilities in nats, and whether it ended by itself."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


def eos_ids(tokenizer: Tokenizer, generation: GenerationConfig | None) -> list[int]:
    """The end-of-sequence tokens of tokenizer and model."""
    listed = generation.eos_token_id if generation else None
    ids = [tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])]
    return sorted({int(one) for one in ids if one is not None})


@dataclass(frozen=True)
class Stop:
    """When a row is finished: an end-of-sequence token or a stop string at its end."""

    eos_ids: Sequence[int] = ()
    strings: Any = None  # a StopStringCriteria

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: Tokenizer, strings: Sequence[str]) -> Stop:
        """The end-of-sequence tokens of model and tokenizer, and these strings."""
        return cls(
            eos_ids(tokenizer, model.generation_config),
            StopStringCriteria(tokenizer, list(strings)) if strings else None,
        )

    def finished(self, tokens_NT: torch.Tensor) -> torch.Tensor:
        """``[N]`` bool: does the last token of each row end it?"""
        eos = torch.tensor(self.eos_ids, dtype=torch.long, device=tokens_NT.device)
        done_N = torch.isin(tokens_NT[:, -1], eos)
        if self.strings is not None:
            done_N = done_N | self.strings(tokens_NT, None)
        return done_N


NEVER = Stop()


def left_pad(prompt_ids: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``ids_BP`` (padded with 0) and ``mask_BP`` (1 = a real token)."""
    longest = max(len(ids) for ids in prompt_ids)
    ids_BP = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in prompt_ids])
    mask_BP = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids])
    return ids_BP.to(device), mask_BP.to(device)


@torch.inference_mode()
def decode_shared(
    model: PreTrainedModel, work: Work, temper: Temper, stop: Stop, advance: Callable[[int], None] = lambda n: None
) -> list[Drawn]:
    """Decode ``work`` with the shared-prefix attention. ``advance(n)`` is told of every n row-steps done."""
    steps = work.uniforms_NT.shape[1]
    ids_BP, mask_BP = left_pad(work.prompt_ids, model.device)
    position_BP = (mask_BP.cumsum(-1) - 1).clamp(min=0)
    cache, taken_as = DynamicCache(), _cache_argument(model)
    logits_BV = model(
        input_ids=ids_BP,
        attention_mask=mask_BP,
        position_ids=position_BP,
        **{taken_as: cache},
        use_cache=True,
        logits_to_keep=torch.tensor([ids_BP.shape[1] - 1], device=model.device),  # as in batches.output_logprobs
    ).logits[:, -1]

    owner_N = torch.tensor(work.owner, device=model.device)
    rows_N = torch.arange(len(owner_N), device=model.device)  # which row of the result each live row is
    uniforms_NT = torch.from_numpy(work.uniforms_NT.astype(np.float32)).to(model.device)
    tokens_NT = torch.zeros(len(owner_N), steps, dtype=torch.long, device=model.device)
    logprobs_NT = torch.zeros(len(owner_N), steps, dtype=torch.float32, device=model.device)
    length_N = torch.full_like(owner_N, steps)
    stopped_N = torch.zeros_like(owner_N, dtype=torch.bool)
    next_position_N = mask_BP.sum(-1)[owner_N]
    prefix = SharedPrefix(cache, mask_BP, owner_N, capacity=steps)

    logits_NV = logits_BV[owner_N]
    for step in range(steps):
        token_N, logprob_N = draw(logits_NV, uniforms_NT[rows_N, step], temper)
        tokens_NT[rows_N, step], logprobs_NT[rows_N, step] = token_N, logprob_N
        newly_N = stop.finished(tokens_NT[rows_N, : step + 1]) & ~stopped_N[rows_N]
        length_N[rows_N[newly_N]] = step + 1
        stopped_N[rows_N[newly_N]] = True
        advance(int(newly_N.sum()) * (steps - step - 1) + int((~stopped_N[rows_N] | newly_N).sum()))
        if step + 1 == steps:
            break
        live_N = ~stopped_N[rows_N]
        live = int(live_N.sum())
        if live == 0:
            break
        if live < COMPACT_BELOW * len(rows_N):
            keep = live_N.nonzero()[:, 0]
            rows_N, token_N, next_position_N = rows_N[keep], token_N[keep], next_position_N[keep]
            prefix.keep(keep)
        logits_NV = model(
            input_ids=token_N[:, None],
            position_ids=next_position_N[:, None],
            # Four dimensions: transformers hands it through as it is. The real mask travels in the prefix.
            attention_mask=prefix.hidden_B11P,
            **{taken_as: prefix.suffix},
            use_cache=True,
            logits_to_keep=1,
            shared_prefix=prefix,
        ).logits[:, -1]
        next_position_N = next_position_N + 1
    return _collect(tokens_NT, logprobs_NT, length_N, stopped_N)


def _cache_argument(model: PreTrainedModel) -> str:
    """What ``forward`` calls its cache: transformers 5.24 renames it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _collect(
    tokens_NT: torch.Tensor, logprobs_NT: torch.Tensor, length_N: torch.Tensor, stopped_N: torch.Tensor
) -> list[Drawn]:
    rows = zip(tokens_NT.tolist(), logprobs_NT.tolist(), length_N.tolist(), stopped_N.tolist(), strict=True)
    return [Drawn(tuple(ids[:length]), tuple(logps[:length]), stopped) for ids, logps, length, stopped in rows]


class _Draw(LogitsProcessor):
    """Our draw inside ``generate``: leaves only the drawn token, so that greedy search takes it."""

    def __init__(self, uniforms_NT: torch.Tensor, temper: Temper) -> None:
        self.uniforms_NT = uniforms_NT
        self.temper = temper
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        token_N, logprob_N = draw(scores, self.uniforms_NT[:, len(self.logprobs)], self.temper)
        self.logprobs.append(logprob_N)
        return torch.full_like(scores, -torch.inf).scatter(-1, token_N[:, None], 0.0)


class _Ended(StoppingCriteria):
    """Our stop inside ``generate``, which itself would also find a stop string that begins in the prompt."""

    def __init__(self, stop: Stop, prompt_length: int) -> None:
        self.stop, self.prompt_length = stop, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        return self.stop.finished(input_ids[:, self.prompt_length :])


@torch.inference_mode()
def decode_generate(
    model: PreTrainedModel,
    work: Work,
    temper: Temper,
    stop: Stop,
    advance: Callable[[int], None] = lambda n: None,
) -> list[Drawn]:
    """The same through ``model.generate``, for models whose cache cannot be shared: slower, same draws."""
    steps = work.uniforms_NT.shape[1]
    ids_NP, mask_NP = left_pad([work.prompt_ids[owner] for owner in work.owner], model.device)
    chooser = _Draw(torch.from_numpy(work.uniforms_NT.astype(np.float32)).to(model.device), temper)
    config = GenerationConfig(
        max_new_tokens=steps,
        do_sample=False,
        eos_token_id=list(stop.eos_ids) or None,
        pad_token_id=stop.eos_ids[0] if stop.eos_ids else 0,
    )
    # The model's own settings (a repetition penalty, suppressed tokens) would change the logits before our draw
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        full_NT = cast(Any, model).generate(
            input_ids=ids_NP,
            attention_mask=mask_NP,
            generation_config=config,
            logits_processor=LogitsProcessorList([chooser]),
            stopping_criteria=StoppingCriteriaList([_Ended(stop, ids_NP.shape[1])]),
        )
    finally:
        model.generation_config = own
    tokens_NT = full_NT[:, full_NT.shape[1] - len(chooser.logprobs) :]
    length_N = torch.full((len(tokens_NT),), tokens_NT.shape[1], device=model.device)
    stopped_N = torch.zeros_like(length_N, dtype=torch.bool)
    for step in range(tokens_NT.shape[1]):
        newly_N = stop.finished(tokens_NT[:, : step + 1]) & ~stopped_N
        length_N[newly_N] = step + 1
        stopped_N |= newly_N
    advance(len(tokens_NT) * steps)
    return _collect(tokens_NT, torch.stack(chooser.logprobs, dim=1), length_N, stopped_N)
