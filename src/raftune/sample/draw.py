"""Draw tokens by inverse CDF, one uniform per candidate and step.

Shapes: N rows (candidates), V vocabulary, T steps.

``torch.multinomial`` on 128 × 49k costs over 100 ms on CPU. Here the probabilities are summed in blocks, the block
is found in the cumulative sum of the blocks, the token in the cumulative sum of that one block: one pass over V.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import UserError
from ..types import digest

BLOCK = 256
IN_CACHE = 1 << 20  # probabilities worked on at once on CPU: 4 MiB, which caches hold and the allocator keeps
HEAD = 1024  # how many of the most likely tokens are looked at before the whole vocabulary is sorted for top-p


@dataclass(frozen=True)
class Temper:
    """How logits become the distribution that is drawn from: temperature, then top-k, then top-p, as transformers
    orders them. ``top_k=1`` is greedy."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature} (for greedy decoding: top_k=1)")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


def uniforms(addresses: Sequence[tuple[object, ...]], steps: int) -> np.ndarray:
    """``[N, T]`` uniforms in [0, 1) from a counter-based generator (Philox), one stream per address.

    An address is (run seed, round, prompt id, index); the step is the place in its stream. So what a candidate says
    does not depend on batch, shard or worker.
    """
    out_NT = np.empty((len(addresses), steps), dtype=np.float64)
    for row, address in zip(out_NT, addresses, strict=True):
        key = np.frombuffer(digest("draw", *address), dtype=np.uint64)
        row[:] = np.random.Generator(np.random.Philox(key=key)).random(steps)
    return out_NT


def draw(logits_NV: torch.Tensor, uniform_N: torch.Tensor, temper: Temper) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token per row.

    Returns ``tokens_N`` (int64) and ``logprobs_N`` (float32, nats): the log-probability of the token under the
    softmax of the logits as they are, before temperature and truncation.
    """
    rows, vocabulary = logits_NV.shape
    together = max(1, IN_CACHE // vocabulary) if logits_NV.device.type == "cpu" else rows
    parts = zip(logits_NV.split(together), uniform_N.split(together), strict=True)
    drawn = [_draw(logits_nV, uniform_n, temper) for logits_nV, uniform_n in parts]
    tokens_N, logprobs_N = (torch.cat(column) for column in zip(*drawn, strict=True))
    if not bool(logprobs_N.isfinite().all()):
        raise UserError("sample: the model's logits are not numbers; are its weights? (a diverged tuning leaves such)")
    return tokens_N, logprobs_N


def _draw(logits_NV: torch.Tensor, uniform_N: torch.Tensor, temper: Temper) -> tuple[torch.Tensor, torch.Tensor]:
    if temper.top_k == 1:
        tokens_N = logits_NV.argmax(-1)
        return tokens_N, _logprob(logits_NV, tokens_N)
    weights_NV = _weights(logits_NV, temper)
    tokens_N = _invert(weights_NV, uniform_N)
    if temper == Temper(temperature=1.0):  # the probability is at hand: no second pass over V
        return tokens_N, weights_NV.gather(-1, tokens_N[:, None])[:, 0].log()
    return tokens_N, _logprob(logits_NV, tokens_N)


def _logprob(logits_NV: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
    return logits_NV.gather(-1, tokens_N[:, None])[:, 0].float() - logits_NV.float().logsumexp(-1)


def _weights(logits_NV: torch.Tensor, temper: Temper) -> torch.Tensor:
    """Probabilities, zero where a token is cut off (then they sum to less than 1), V padded to whole blocks."""
    tempered_NV = logits_NV if temper.temperature == 1.0 else logits_NV.float() / temper.temperature
    weights_NV = torch.softmax(tempered_NV, dim=-1, dtype=torch.float32)
    if temper.top_k is not None and temper.top_k < weights_NV.shape[-1]:
        floor_N = weights_NV.topk(temper.top_k, dim=-1).values[:, -1:]
        weights_NV.masked_fill_(weights_NV < floor_N, 0.0)
    if temper.top_p is not None and temper.top_p < 1:
        weights_NV.masked_fill_(weights_NV < _nucleus_floor(weights_NV, temper.top_p), 0.0)
    missing = -weights_NV.shape[-1] % BLOCK
    return torch.nn.functional.pad(weights_NV, (0, missing)) if missing else weights_NV


def _nucleus_floor(weights_NV: torch.Tensor, top_p: float) -> torch.Tensor:
    """``[N, 1]``: the smallest weight that stays. A token stays while the mass of the likelier ones is below top_p."""
    mass_N = weights_NV.sum(-1, keepdim=True) * top_p
    vocabulary = weights_NV.shape[-1]
    head = min(HEAD, vocabulary)
    while True:
        sorted_NH = weights_NV.topk(head, dim=-1).values
        cumulative_NH = sorted_NH.cumsum(-1)
        if head == vocabulary or bool((cumulative_NH[:, -1:] >= mass_N).all()):
            break
        head = min(head * 8, vocabulary)
    before_NH = cumulative_NH - sorted_NH
    last_N = ((before_NH < mass_N).sum(-1, keepdim=True) - 1).clamp(min=0)
    return sorted_NH.gather(-1, last_N)


def _invert(weights_NV: torch.Tensor, uniform_N: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulative weight exceeds uniform × total; never one of weight zero."""
    blocks_NBb = weights_NV.unflatten(-1, (-1, BLOCK))
    block, rest_N = _first_above(blocks_NBb.sum(-1), uniform_N)
    inside_Nb = blocks_NBb.gather(1, block[:, None, None].expand(-1, 1, BLOCK))[:, 0]
    token, _ = _first_above(inside_Nb, rest_N)
    return block * BLOCK + token


def _first_above(weights_NM: torch.Tensor, fraction_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the first cumulative weight above fraction × total, and the fraction of that one weight still to go."""
    wide = torch.float32 if weights_NM.device.type == "mps" else torch.float64  # MPS has no float64
    weights_NM = weights_NM.to(wide)
    cumulative_NM = weights_NM.cumsum(-1)
    target_N = fraction_N.to(wide)[:, None] * cumulative_NM[:, -1:]
    index_N = torch.searchsorted(cumulative_NM, target_N, right=True)
    positions = torch.arange(weights_NM.shape[-1], device=weights_NM.device)
    last_N = torch.where(weights_NM > 0, positions, 0).amax(-1, keepdim=True)  # rounding can leave target at the end
    index_N = index_N.minimum(last_N)
    weight_N = weights_NM.gather(-1, index_N)
    rest_N = (target_N - (cumulative_NM.gather(-1, index_N) - weight_N)) / weight_N
    return index_N[:, 0], rest_N[:, 0].clamp(0.0, 1.0)
