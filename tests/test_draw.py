"""The draw against the softmax it should follow, and against the library's warpers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from raftune.sample.draw import Temper, draw, uniforms

TEMPERS = [
    Temper(),
    Temper(temperature=0.5),
    Temper(temperature=1.7, top_k=5),
    Temper(top_p=0.7),
    Temper(temperature=1.3, top_k=20, top_p=0.8),
]


def expected(logits: torch.Tensor, temper: Temper) -> torch.Tensor:
    """The distribution that transformers would draw from."""
    scores = TemperatureLogitsWarper(temper.temperature)(None, logits[None].float())
    if temper.top_k is not None:
        scores = TopKLogitsWarper(temper.top_k)(None, scores)
    if temper.top_p is not None:
        scores = TopPLogitsWarper(temper.top_p)(None, scores)
    return scores[0].softmax(-1)


@pytest.mark.parametrize("temper", TEMPERS, ids=str)
@pytest.mark.parametrize("vocabulary", [50, 700])
def test_every_uniform_meets_its_token(temper: Temper, vocabulary: int) -> None:
    """A fine grid of uniforms is the closed form: each token gets its probability's share of the grid."""
    torch.manual_seed(1)
    logits = torch.randn(vocabulary) * 3
    steps = 20_000
    grid = (torch.arange(steps) + 0.5) / steps
    counts = torch.zeros(vocabulary)
    for part in grid.split(4000):
        tokens, _ = draw(logits.expand(len(part), -1), part, temper)
        counts += torch.bincount(tokens, minlength=vocabulary)
    probabilities = expected(logits, temper)
    assert (counts / steps - probabilities).abs().max() < 2.5 / steps
    assert counts[probabilities == 0].sum() == 0


def test_random_draws_pass_a_chi_square_test() -> None:
    """The uniforms with their addresses, not a grid: 40 cells, chi-square below its 99.99 % quantile."""
    torch.manual_seed(2)
    logits, count = torch.randn(40), 40_000
    uniform = torch.from_numpy(uniforms([(0, "a", i) for i in range(count // 20)], 20).reshape(-1))
    tokens, _ = draw(logits.expand(count, -1), uniform, Temper())
    observed = torch.bincount(tokens, minlength=40)
    wanted = logits.softmax(-1) * count
    assert float(((observed - wanted) ** 2 / wanted).sum()) < 83.0


@pytest.mark.parametrize("temper", [*TEMPERS, Temper(top_k=1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_of_the_untempered_softmax(temper: Temper, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    logits = (torch.randn(30, 300) * 4).to(dtype)
    tokens, logprobs = draw(logits, torch.rand(30), temper)
    wanted = logits.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), wanted, atol=1e-5, rtol=0)
    assert logprobs.dtype == torch.float32


def test_top_k_one_is_argmax() -> None:
    logits = torch.randn(20, 90)
    assert torch.equal(draw(logits, torch.rand(20), Temper(top_k=1))[0], logits.argmax(-1))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from([-math.inf, -80.0, -1.0, 0.0, 0.5, 30.0]), min_size=1, max_size=600),
    st.floats(0, 1, exclude_max=True),
)
def test_impossible_tokens_are_never_drawn(logits: list[float], uniform: float) -> None:
    if max(logits) == -math.inf:
        return
    row = torch.tensor(logits)
    token, _ = draw(row[None], torch.tensor([uniform]), Temper())
    assert row[token] > -math.inf


def test_a_uniform_of_almost_one_stays_in_the_vocabulary() -> None:
    logits = torch.zeros(3, 49152)
    tokens, _ = draw(logits, torch.tensor([0.0, 1 - 2**-24, 1.0]), Temper())
    assert tokens[0] == 0
    assert tokens[1:].max() < 49152


def test_uniforms_depend_on_their_address_alone() -> None:
    together = uniforms([(0, 1, "a", 0), (0, 1, "a", 1), (0, 1, "b", 0)], 8)
    assert (uniforms([(0, 1, "a", 1)], 8)[0] == together[1]).all()
    assert (uniforms([(0, 1, "a", 1)], 3)[0] == together[1][:3]).all()
    assert len({tuple(row) for row in together}) == 3
    assert (uniforms([(1, 1, "a", 1)], 8)[0] != together[1]).any()


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_ranges_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Temper(**wrong)
