"""Evaluation against closed forms and the library's own loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import build_model, prompts_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from raftune.evaluate.diversity import distinct, msttr, words
from raftune.evaluate.text import describe, judge, logprobs
from raftune.sample.text import TextSampler
from raftune.tokens import encode_prompt
from raftune.types import Candidate, Prompt, Scored, Text


def test_words() -> None:
    assert words("Don't stop -- it's GOOD, très bon!") == ["don't", "stop", "it's", "good", "très", "bon"]


def test_distinct_is_types_over_tokens() -> None:
    assert distinct(["a b a", "b c"], 1) == 3 / 5
    assert distinct(["a b a", "b c"], 2) == 1.0  # bigrams do not cross from one text into the next
    assert distinct(["a a a a"], 2) == 1 / 3
    assert distinct(["a"], 2) is None


def test_msttr_is_the_mean_over_whole_segments() -> None:
    text = " ".join(["a"] * 100 + [f"w{i}" for i in range(100)] + ["rest"] * 50)
    assert msttr([text]) == pytest.approx((0.01 + 1.0) / 2)
    assert msttr(["too short"]) is None


def test_perplexity_and_kl_are_the_librarys(tiny: Path, tmp_path: Path) -> None:
    """Perplexity from the library's token-mean loss; the policy is another model, so KL is not zero."""
    policy = build_model(tmp_path / "policy", seed=4)
    prompts = prompts_of("One", "Another prompt")  # outputs of unequal length: tokens count, not outputs
    candidates = [c for n in (3, 12) for c in TextSampler(max_new_tokens=n).sample(policy, prompts, 3, (0,))]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny).eval(), AutoTokenizer.from_pretrained(tiny)
    total, tokens, gaps = 0.0, 0, []
    for c in candidates:
        prompt, output = encode_prompt(tokenizer, c.prompt), list(c.output.token_ids)
        labels = torch.tensor([[-100] * len(prompt) + output])
        with torch.inference_mode():
            nll = model(torch.tensor([prompt + output]), labels=labels).loss.item() * len(output)
        total, tokens = total + nll, tokens + len(output)
        gaps.append(c.logprob + nll)
    figures = judge([Scored(c, 0.5) for c in candidates], tiny)
    assert figures["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert figures["kl"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-3)
    assert figures["kl"] > 0.1
    assert figures["reward_mean"] == 0.5


def test_a_policy_has_no_distance_from_itself(tiny: Path) -> None:
    candidates = TextSampler(max_new_tokens=12).sample(tiny, prompts_of("One", "Another prompt"), 4, (0,))
    assert judge([Scored(c, None) for c in candidates], tiny)["kl"] == pytest.approx(0, abs=1e-3)
    for c, (total, count) in zip(candidates, logprobs(tiny, candidates), strict=True):
        assert total == pytest.approx(c.logprob, abs=1e-3)
        assert count == len(c.output.token_ids)


def test_what_was_not_measured_is_absent(tiny: Path) -> None:
    by_people = [Scored(Candidate(Prompt("p", "Q"), 0, Text("An answer")), None)]
    figures = judge(by_people, tiny)
    assert {"reward_mean", "kl", "length_mean", "msttr_100"}.isdisjoint(figures)
    assert figures["perplexity"] > 1
    assert describe([]) == {}
