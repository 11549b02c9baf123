"""Attention of K continuations to one shared prompt: the prompt's keys and values are stored once, un-copied.

Shapes: B prompts, N rows (continuations, sorted by prompt), H heads, Hkv key/value heads, G = H / Hkv,
P prompt positions (left-padded), t suffix positions, D head width, M = the most rows that one prompt has.

Both parts go through one softmax: scores against the shared prefix come from one matmul of a prompt's M·G queries,
scores against the suffix are per row. It is registered through transformers' ``AttentionInterface``, so it serves
every decoder that takes its attention from there and hands keyword arguments through.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "raftune_shared_prefix"
BLOCK = 16  # suffix positions allocated at a time


class SharedPrefix:
    """The prompts' keys and values, which rows belong to which prompt, and the rows' own ``suffix``, empty at first,
    for at most ``capacity`` new tokens of each."""

    def __init__(self, cache: DynamicCache, mask_BP: torch.Tensor, owner_N: torch.Tensor, capacity: int) -> None:
        self.keys, self.values = [], []
        for layer in cache.layers:
            if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
                raise TypeError(f"a {type(layer).__name__} cannot be shared")
            self.keys.append(layer.keys)
            self.values.append(layer.values)
        self.hidden_B11P = ~mask_BP.bool()[:, None, None, :]
        self.masked = bool(self.hidden_B11P.any())
        self.suffix = SuffixCache(len(self.keys), capacity)
        self._arrange(owner_N)

    def _arrange(self, owner_N: torch.Tensor) -> None:
        self.owner_N = owner_N
        counts_B = torch.bincount(owner_N, minlength=len(self.hidden_B11P))
        self.width = int(counts_B.max())
        first_B = counts_B.cumsum(0) - counts_B
        place_N = torch.arange(len(owner_N), device=owner_N.device) - first_B[owner_N]
        self.slot_N = owner_N * self.width + place_N
        self.regular = len(owner_N) == len(counts_B) * self.width

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only; prompts without rows leave too."""
        owner_N = self.owner_N[rows]
        alive_B, owner_N = torch.unique(owner_N, return_inverse=True)
        if len(alive_B) < len(self.hidden_B11P):
            self.keys = [k.index_select(0, alive_B) for k in self.keys]
            self.values = [v.index_select(0, alive_B) for v in self.values]
            self.hidden_B11P = self.hidden_B11P.index_select(0, alive_B)
        self.suffix.keep(rows)
        self._arrange(owner_N)

    def group(self, rows_NHGD: torch.Tensor) -> torch.Tensor:
        """``[N, Hkv, G, D] → [B, Hkv, M·G, D]``; places without a row are zero."""
        _, heads, group, width = rows_NHGD.shape
        prompts = len(self.hidden_B11P)
        if self.regular:
            grid = rows_NHGD
        else:
            grid = rows_NHGD.new_zeros(prompts * self.width, heads, group, width)
            grid[self.slot_N] = rows_NHGD
        grid = grid.view(prompts, self.width, heads, group, width).transpose(1, 2)
        return grid.reshape(prompts, heads, self.width * group, width)

    def ungroup(self, grid_BHQX: torch.Tensor, group: int) -> torch.Tensor:
        """``[B, Hkv, M·G, X] → [N, Hkv, G, X]``."""
        prompts, heads, _, width = grid_BHQX.shape
        rows = grid_BHQX.view(prompts, heads, self.width, group, width).transpose(1, 2)
        rows = rows.reshape(prompts * self.width, heads, group, width)
        return rows if self.regular else rows[self.slot_N]


class SuffixLayer(CacheLayerMixin):
    """A layer's keys and values of the continuations only, ``[N, Hkv, t, D]``, written in place.

    ``update`` returns whole blocks, the places not written yet among them: a batched matmul takes a packed tensor as
    it lies, but would copy a slice of it, every step. What is not written is zero, and ``length`` tells how much is.
    """

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = self._grown(key_states[:, :, :0]), self._grown(value_states[:, :, :0])
        self.is_initialized = True

    def _grown(self, held: torch.Tensor) -> torch.Tensor:
        """One more block, with what is held at its beginning."""
        rows, heads, taken, width = held.shape
        room = held.new_zeros(rows, heads, min(self.capacity, taken + BLOCK), width)
        room[:, :, :taken] = held
        return room

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        if self.length == self.keys.shape[2]:
            self.keys, self.values = self._grown(self.keys), self._grown(self.values)
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys, self.values

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class SuffixCache(Cache):
    """The continuations' own keys and values in all layers."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.own = [SuffixLayer(capacity) for _ in range(layers)]
        super().__init__(layers=[*self.own])

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        for layer in self.own:
            layer.keep(rows)


def shared_prefix_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    shared_prefix: SharedPrefix | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """One decoding step, ``query [N, H, 1, D]`` → ``[N, 1, H, D]``. Without a prefix (prefill): plain SDPA."""
    if shared_prefix is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, softcap=softcap, **kwargs
        )
    if softcap is not None or kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise ValueError("shared-prefix attention knows no softcap, sinks or position bias")
    rows, heads, _, width = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    prefix_key, prefix_value = shared_prefix.keys[module.layer_idx], shared_prefix.values[module.layer_idx]
    positions = prefix_key.shape[2]
    query = query * (width**-0.5 if scaling is None else scaling)
    query_NHGD = query.view(rows, kv_heads, group, width)

    prefix_BHQP = shared_prefix.group(query_NHGD) @ prefix_key.transpose(2, 3)
    if shared_prefix.masked:
        prefix_BHQP = prefix_BHQP.masked_fill(shared_prefix.hidden_B11P, torch.finfo(prefix_BHQP.dtype).min)
    suffix_NHGt = query_NHGD @ key.transpose(2, 3)
    suffix_NHGt[..., shared_prefix.suffix.get_seq_length(module.layer_idx) :] = torch.finfo(suffix_NHGt.dtype).min
    scores = torch.cat([shared_prefix.ungroup(prefix_BHQP, group), suffix_NHGt], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)

    grouped_BHQP = shared_prefix.group(weights[..., :positions])
    out_NHGD = shared_prefix.ungroup(grouped_BHQP @ prefix_value, group)
    out_NHGD = out_NHGD + weights[..., positions:] @ value
    return out_NHGD.reshape(rows, 1, heads, out_NHGD.shape[-1]), None


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
