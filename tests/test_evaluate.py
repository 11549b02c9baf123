"""Evaluation against closed forms and the library's own loss."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import build_model, prompts_of
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from raftune.evaluate import image, sheet
from raftune.evaluate.best_of_n import curve, expected_best
from raftune.evaluate.diversity import distinct, msttr, unique, words
from raftune.evaluate.text import appraise, describe
from raftune.likelihood import logprobs
from raftune.picture import Picture
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


def test_unique_counts_different_ngrams() -> None:
    assert unique(["a b a", "b c"], 1) == 3
    assert unique(["a b a", "b c", "A b"], 2) == 3  # ab, ba, bc
    assert unique(["a"], 2) == 0
    assert unique([], 1) is None


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
    figures = appraise([Scored(c, 0.5) for c in candidates], policy, tiny, "reference")
    assert figures["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert figures["kl"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-3)
    assert figures["kl"] > 0.1
    assert figures["reward_mean"] == 0.5


def test_reference_perplexity_is_the_librarys_of_the_current_policy(tiny: Path, tmp_path: Path) -> None:
    """Of the evaluated policy, not the initial one; over tokens, not answers; each prompt once, whatever k is."""
    policy = build_model(tmp_path / "policy", seed=4, scale=1.0)
    columns = [{"answer": " a film"}, {"answer": [" much longer than that one", " short", "", 7]}, {}]
    prompts = [Prompt(f"p{i}", f"Prompt {i}", c) for i, c in enumerate(columns)]
    prompts.append(Prompt("long", "Prompt", {"answer": "x" * 300}))  # longer than the context of 256
    drawn = [Scored(Candidate(p, i, Text("out", None)), None) for p in prompts for i in range(2)]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy).eval(), AutoTokenizer.from_pretrained(policy)
    total, tokens = 0.0, 0
    for prompt, text in [(0, " a film"), (1, " much longer than that one"), (1, " short")]:
        before = encode_prompt(tokenizer, prompts[prompt])
        answer = tokenizer(text, add_special_tokens=False)["input_ids"]
        labels = torch.tensor([[-100] * len(before) + answer])
        with torch.inference_mode():
            total += model(torch.tensor([before + answer]), labels=labels).loss.item() * len(answer)
        tokens += len(answer)
    figures = appraise(drawn, policy, tiny, "answer")
    assert figures["reference_perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert figures["references"] == 3
    assert appraise(drawn, tiny, tiny, "answer")["reference_perplexity"] != pytest.approx(math.exp(total / tokens))
    assert {"reference_perplexity", "references"}.isdisjoint(appraise(drawn, policy, tiny, "reference"))


def rewarded(**rewards: list[float | None]) -> list[Scored]:
    return [
        Scored(Candidate(Prompt(name, name), i, Text("")), reward)
        for name, found in rewards.items()
        for i, reward in enumerate(found)
    ]


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8), st.data())
def test_best_of_n_is_the_mean_over_all_subsets(rewards: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(rewards)))
    maxima = [max(some) for some in itertools.combinations(rewards, n)]
    assert expected_best(rewards, n) == pytest.approx(sum(maxima) / len(maxima))


def test_the_curve_is_about_the_same_prompts_at_every_n() -> None:
    draws = {
        "a": [1.0, 5.0, 2.0, 2.0, 0.0, 3.0],
        "b": [-1.0] * 6,
        "hole": [9.0, None, 9.0, 9.0, 9.0, 9.0],
        "few": [9.0],
    }
    found = curve(rewarded(**draws))
    assert list(found) == [1, 2, 4]  # 6 draws: 8 cannot be told
    for n, value in found.items():
        maxima = [max(some) for some in itertools.combinations(draws["a"], n)]
        assert value == pytest.approx((sum(maxima) / len(maxima) - 1.0) / 2)
    assert curve(rewarded(a=[None, 1.0])) == curve([]) == {}
    assert math.isfinite(expected_best([float(i) for i in range(5000)], 2048))


def test_best_of_n_is_in_the_figures_where_there_is_more_than_one_draw(tiny: Path) -> None:
    figures = appraise(rewarded(a=[1.0, 2.0], b=[0.0, 0.0]), tiny, tiny, "reference")
    assert figures["best_of_2"] == 1.0
    assert figures["reward_mean"] == 0.75
    assert not any("best_of" in name for name in appraise(rewarded(a=[1.0]), tiny, tiny, "reference"))


def test_a_policy_has_no_distance_from_itself(tiny: Path) -> None:
    candidates = TextSampler(max_new_tokens=12).sample(tiny, prompts_of("One", "Another prompt"), 4, (0,))
    assert appraise([Scored(c, None) for c in candidates], tiny, tiny, "reference")["kl"] == pytest.approx(0, abs=1e-3)
    for c, (total, count) in zip(candidates, logprobs(tiny, candidates), strict=True):
        assert total == pytest.approx(c.logprob, abs=1e-3)
        assert count == len(c.output.token_ids)


def test_what_was_not_measured_is_absent(tiny: Path) -> None:
    by_people = [Scored(Candidate(Prompt("p", "Q"), 0, Text("An answer")), None)]
    figures = appraise(by_people, tiny, tiny, "reference")
    assert {"reward_mean", "kl", "length_mean", "msttr_100"}.isdisjoint(figures)
    assert figures["perplexity"] > 1
    assert describe([]) == {}


def drawing(prompt: str, index: int, picture: PIL.Image.Image, flagged: bool = False) -> Candidate:
    return Candidate(Prompt(prompt, f"text of {prompt}"), index, Picture.of(picture, flagged))


def noisy(seed: int, width: int = 6, height: int = 5) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    """Two prompts of unequal numbers of pictures: the mean is over pairs, then prompts; flagged are out."""
    groups = {"a": [noisy(i) for i in range(4)], "b": [noisy(i, 3, 3) for i in range(2)], "c": [noisy(9)]}
    means = []
    for pictures in groups.values():
        distances = []
        for one, other in itertools.combinations(pictures, 2):
            squares = [
                (x - y) ** 2
                for x, y in zip(np.asarray(one).ravel() / 255, np.asarray(other).ravel() / 255, strict=True)
            ]
            distances.append(math.sqrt(sum(squares) / len(squares)))
        means += [sum(distances) / len(distances)] if distances else []
    groups["d"] = [PIL.Image.new("RGB", (3, 3))] * 2  # black, as the safety checker leaves them
    drawn = [drawing(name, i, p, name == "d") for name, pictures in groups.items() for i, p in enumerate(pictures)]
    figures = image.describe(drawn, 3.5)
    assert figures["diversity"] == pytest.approx(sum(means) / 2, rel=1e-5)
    assert figures["flagged"] == pytest.approx(2 / 9)
    assert figures["pictures_per_s"] == 9 / 3.5
    assert image.appraise([Scored(one, 0.5) for one in drawn], "m", "m", "r")["reward_mean"] == 0.5


def test_pictures_of_mixed_sizes_compare() -> None:
    mixed = [drawing("a", 0, noisy(1)), drawing("a", 1, noisy(2, 5, 9))]
    assert 0 < image.describe(mixed)["diversity"] < 1


def test_one_picture_has_no_diversity_and_the_same_twice_none() -> None:
    black, white = (PIL.Image.new("RGB", (100, 80), (level,) * 3) for level in (0, 255))  # compared at 64 × 64
    assert image.describe([drawing("a", 0, black), drawing("a", 1, black)])["diversity"] == 0.0
    assert image.describe([drawing("a", 0, noisy(1)), drawing("a", 1, noisy(1))])["diversity"] == 0.0
    assert image.describe([drawing("a", 0, black), drawing("a", 1, white)])["diversity"] == 1.0
    assert image.describe([drawing("a", 0, black)]) == {"flagged": 0.0}
    assert image.describe([]) == {}
    assert "reward_mean" not in image.appraise([Scored(drawing("a", 0, black), None)], "m", "m", "r")


@pytest.mark.parametrize(
    ("counts", "rows"),
    [([70], [8] * 8), ([3], [3]), ([10], [8, 2]), ([20] * 3, [8] * 6), ([9] * 10, [8] * 8), ([1, 5], [1, 5])],
)
def test_a_sheet_has_eight_rows_of_eight_at_most(counts: list[int], rows: list[int]) -> None:
    """A row is one prompt's; the prompts keep their order, and their pictures theirs."""
    drawn = [
        Scored(Candidate(Prompt(f"p{n}", f"text {n}"), i, None), 0.0)
        for n, count in enumerate(counts)
        for i in range(count)
    ]
    laid = sheet.layout([(one, one) for one in drawn])
    assert [len(row) for row in laid] == rows
    for row in laid:
        assert len({pair[0].candidate.prompt.id for pair in row}) == 1
    shown = [pair[0] for row in laid for pair in row]
    assert shown == [one for one in drawn if one in shown]


def test_the_sheet_shows_before_left_and_after_right(tmp_path: Path) -> None:
    def side(level: tuple[int, int, int], seen: range) -> list[Scored]:
        return [Scored(drawing("a", i, PIL.Image.new("RGB", (16, 16), level)), 1.0, {"r": 1.0}) for i in seen]

    red, blue = (255, 0, 0), (0, 0, 255)
    said = sheet.exhibit(side(red, range(3)), side(blue, range(1, 5)), 2, tmp_path)
    assert str(tmp_path / sheet.NAME) in said
    pixels = np.asarray(PIL.Image.open(tmp_path / sheet.NAME))
    places = [np.argwhere((pixels == level).all(-1)) for level in (red, blue)]
    for place in places:  # two cells a side, but for a frame of one pixel: only 1 and 2 were drawn both times
        assert abs(len(place) - 2 * sheet.CELL**2) <= 2 * 4 * sheet.CELL
    assert places[0][:, 1].max() < places[1][:, 1].min()
    assert sheet.exhibit(side(red, range(3)), side(blue, range(3, 5)), 2, tmp_path).startswith("no picture was drawn")
