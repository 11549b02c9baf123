"""Prompt and output pairs as batches whose outputs begin in one column: logits are taken only where there is loss.

Shapes: B rows, T positions (prompts left-padded, outputs right-padded), C output positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")
IGNORE = -100
IN_CACHE = 1 << 20  # numbers worked on at once on CPU: 4 MiB of float32, which caches hold and the allocator keeps
Pair = tuple[Sequence[int], Sequence[int]]  # prompt ids, output ids


def sizes(pair: Pair) -> tuple[int, int]:
    """Lengths of prompt and output, which are padded apart."""
    return len(pair[0]), len(pair[1])


def within_budget(items: Iterable[T], size: Callable[[T], tuple[int, ...]], budget: int) -> list[list[T]]:
    """Items of like length together, shortest first, at most ``budget`` padded tokens a group (at least one item).

    ``size`` gives the lengths of an item's parts; each part is padded to its longest in the group.
    """
    groups: list[list[T]] = []
    longest: tuple[int, ...] = ()
    for item in sorted(items, key=lambda item: sum(size(item))):
        together = tuple(map(max, longest, size(item)))
        if groups and (len(groups[-1]) + 1) * sum(together) <= budget:
            groups[-1].append(item)
            longest = together
        else:
            groups.append([item])
            longest = size(item)
    return groups


@dataclass(frozen=True)
class Batch:
    """``ids_BT``, ``mask_BT`` (1: a real token), ``position_BT``; of the outputs ``labels_BC``, ``loss_mask_BC``."""

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    position_BT: torch.Tensor
    labels_BC: torch.Tensor
    loss_mask_BC: torch.Tensor


def collate(pairs: Sequence[Pair], where: torch.device) -> Batch:
    """Pad: prompts on the left, outputs on the right."""
    left = max(len(prompt) for prompt, _ in pairs)
    right = max(len(output) for _, output in pairs)
    ids, mask, labels, loss = [], [], [], []
    for prompt, output in pairs:
        before, after = left - len(prompt), right - len(output)
        ids.append([0] * before + list(prompt) + list(output) + [0] * after)
        mask.append([0] * before + [1] * (len(prompt) + len(output)) + [0] * after)
        labels.append(list(output) + [0] * after)
        loss.append([1] * len(output) + [0] * after)
    mask_BT = torch.tensor(mask)
    position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    tensors = torch.tensor(ids), mask_BT, position_BT, torch.tensor(labels), torch.tensor(loss, dtype=torch.bool)
    return Batch(*(tensor.to(where) for tensor in tensors))


def output_logprobs(model: Any, batch: Batch) -> torch.Tensor:
    """``[B, C]`` float32: log-probability in nats of each output token; 0 at padding."""
    rows, columns = batch.labels_BC.shape
    labels_BC = batch.labels_BC.masked_fill(~batch.loss_mask_BC, IGNORE)
    # Logits of the column before each output token, and of the last, which predicts nothing. It is ignored by its
    # label, not cut off: the gradient of a cut is another tensor of the logits' size.
    labels_BC1 = torch.nn.functional.pad(labels_BC, (0, 1), value=IGNORE)
    width = batch.ids_BT.shape[1]
    # Columns by their numbers, not as a slice, of which torch would make a matmul a row with as many copies of the
    # output layer wherever that layer is frozen: under an adapter
    kept_C1 = torch.arange(width - columns - 1, width, device=batch.ids_BT.device)
    logits_BC1V = model(
        input_ids=batch.ids_BT,
        attention_mask=batch.mask_BT,
        position_ids=batch.position_BT,
        use_cache=False,
        logits_to_keep=kept_C1,
    ).logits
    if logits_BC1V.shape[1] > columns + 1:  # a model that does not know logits_to_keep
        logits_BC1V = logits_BC1V[:, -columns - 1 :]
    logprobs_N = LabelLogprobs.apply(logits_BC1V.flatten(0, 1), labels_BC1.flatten())
    return logprobs_N.view(rows, columns + 1)[:, :-1]


class LabelLogprobs(torch.autograd.Function):
    """``logits_NV``, ``labels_N`` → ``[N]`` float32: log-softmax at the label, 0 where it is ``IGNORE``.

    The same as ``cross_entropy(logits.float(), labels, reduction="none")`` negated, which keeps three tensors of the
    logits' size in float32. Here a few rows at a time go through the cache, forward and backward, and what is kept
    are the logits as they are.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        label_N1 = labels_N.clamp(min=0)[:, None]
        total_N = torch.cat([some.float().logsumexp(-1) for some in _rows(logits_NV)])
        ctx.save_for_backward(logits_NV, labels_N, total_N)
        logprobs_N = logits_NV.gather(-1, label_N1)[:, 0].float() - total_N
        return logprobs_N.masked_fill(labels_N == IGNORE, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """d log p(label) / d logits = onehot(label) - p."""
        logits_NV, labels_N, total_N = ctx.saved_tensors
        grad_N1 = grads[0].float().masked_fill(labels_N == IGNORE, 0.0)[:, None]
        out_NV = torch.empty_like(logits_NV)
        parts = zip(_rows(logits_NV), _rows(out_NV), strict=True)
        at = 0
        for logits_nV, out_nV in parts:
            here = slice(at, at := at + len(logits_nV))
            p_nV = (logits_nV.float() - total_N[here, None]).exp_().mul_(-grad_N1[here])
            out_nV.copy_(p_nV.scatter_add_(-1, labels_N[here, None].clamp(min=0), grad_N1[here]))
        return out_NV, None


def _rows(tensor_NV: torch.Tensor) -> Sequence[torch.Tensor]:
    """A few rows at a time: on CPU so many as caches hold in float32."""
    together = max(1, IN_CACHE // tensor_NV.shape[-1]) if tensor_NV.device.type == "cpu" else len(tensor_NV)
    return tensor_NV.split(together)
