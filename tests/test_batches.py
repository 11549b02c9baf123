"""Log-probabilities of labels and their gradients against the library's cross-entropy."""

from __future__ import annotations

import pytest
import torch

from raftune.batches import IGNORE, IN_CACHE, LabelLogprobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [300, IN_CACHE // 3 + 1])  # all rows at once; two at a time, and one left over
def test_label_logprobs_are_minus_cross_entropy(vocabulary: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    logits_NV = (4 * torch.randn(5, vocabulary, generator=draw)).to(dtype)
    labels_N = torch.tensor([3, IGNORE, vocabulary - 1, 0, 17])
    scale_N = torch.tensor([1.0, 2.0, -0.5, 0.1, 0.0])
    ours, theirs = (logits_NV.clone().requires_grad_() for _ in range(2))
    logprobs_N = LabelLogprobs.apply(ours, labels_N)
    expected_N = -torch.nn.functional.cross_entropy(theirs.double(), labels_N, reduction="none", ignore_index=IGNORE)
    assert logprobs_N.dtype == torch.float32
    torch.testing.assert_close(logprobs_N, expected_N.float(), rtol=1e-5, atol=1e-5)
    (logprobs_N * scale_N).sum().backward()
    (expected_N * scale_N).sum().backward()
    assert ours.grad is not None and theirs.grad is not None and ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-7)
    assert not ours.grad[1].any()
