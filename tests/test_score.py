"""From the parts of a reward to the reward."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMMON, SMALL, build_tokenizer, candidate
from hypothesis import given
from hypothesis import strategies as st

from raftune import pick
from raftune.config import RewardConfig
from raftune.errors import UserError
from raftune.resident import resident
from raftune.reward.classifier import ClassifierReward
from raftune.reward.functions import FunctionReward, rewards
from raftune.reward.sentiment import Vader
from raftune.score import Rewards, Weighted, zscore
from raftune.tokens import encode_answered, encode_answers
from raftune.types import Candidate, Prompt, Text


class Fixed:
    """A reward that returns what it was told to."""

    def __init__(self, values: Sequence[Any], name: str = "fixed") -> None:
        self.values, self.name = values, name

    def __call__(self, candidates: Sequence[Candidate]) -> Sequence[Any]:
        return self.values


FOUR = [candidate("a", 0, "x"), candidate("a", 1, "yy"), candidate("b", 0, "zzz"), candidate("b", 1, "")]


def reward_of(*weighted: Weighted) -> list[float | None]:
    return [one.reward for one in Rewards(weighted)(FOUR)]


def test_weights_add_up_and_raw_parts_are_kept() -> None:
    both = Rewards((Weighted(Fixed([1, 2, 3, 4], "p"), 2.0), Weighted(Fixed([10, 0, -10, 5], "q"), -0.5)))(FOUR)
    assert [one.reward for one in both] == [-3.0, 4.0, 11.0, 5.5]
    assert dict(both[2].parts) == {"p": 3.0, "q": -10.0}


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_zscore_has_mean_zero_and_deviation_one(values: list[float]) -> None:
    scores = zscore(values)
    assert math.fsum(scores) / len(scores) == pytest.approx(0, abs=1e-6)
    deviation = math.sqrt(math.fsum(s * s for s in scores) / len(scores))
    assert deviation == pytest.approx(1, abs=1e-3) or deviation == 0


def test_normalisation_is_over_the_whole_round_and_leaves_holes() -> None:
    found = reward_of(Weighted(Fixed([1.0, None, 3.0, None]), normalise="zscore"))
    assert found == [-1.0, None, 1.0, None]
    assert reward_of(Weighted(Fixed([7, 7, 7, 7]), normalise="zscore")) == [0.0] * 4


def test_two_pools_compare_when_standardised_by_one() -> None:
    part = Weighted(Fixed([], "p"), normalise="zscore")
    first = {"p": [1.0, 3.0, 1.0, 3.0]}
    later = Rewards((part,)).combine(FOUR, {"p": [3.0, 3.0, 5.0, None]}, first)
    assert [one.reward for one in later] == [1.0, 1.0, 3.0, None]


def test_none_and_nan_mean_not_scored() -> None:
    assert reward_of(Weighted(Fixed([1, None, math.nan, 0]))) == [1, None, None, 0]


def test_a_part_that_does_not_apply_to_a_prompt_is_left_out_but_a_hole_is_a_hole() -> None:
    everywhere, only_a = Fixed([1, 2, 3, 4], "p"), Fixed([10, 20, None, None], "q")
    assert reward_of(Weighted(everywhere), Weighted(only_a)) == [11, 22, 3, 4]
    hole = Fixed([10, None, None, None], "q")
    assert reward_of(Weighted(everywhere), Weighted(hole)) == [11, None, 3, 4]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, 2, 3], "3 values for 4"),
        ([1, 2, 3, math.inf], "inf"),
        ([1, 2, 3, "x"], "'x'"),
        ([1, 2, -math.inf, 3], "-inf"),
        ([1, 10**400, 2, 3], "1000"),
        ([1, 2, 1e200, 3], "1e.200"),
    ],
)
def test_a_broken_reward_is_an_error_that_names_it(values: list[Any], said: str) -> None:
    with pytest.raises(UserError, match="reward 'fixed'.*" + said):
        reward_of(Weighted(Fixed(values)))


def test_an_exception_names_the_reward() -> None:
    def broken(completions: list[str]) -> list[float]:
        raise KeyError("answer")

    with pytest.raises(UserError, match="reward 'broken' raised KeyError"):
        rewards(broken)(FOUR)


def test_two_parts_need_two_names() -> None:
    with pytest.raises(UserError, match="two parts are called 'fixed'"):
        reward_of(Weighted(Fixed([])), Weighted(Fixed([])))


def test_functions_get_trls_arguments() -> None:
    seen: dict[str, Any] = {}

    def remember(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        seen.update(prompts=prompts, completions=completions, **columns)
        return [0.0] * len(prompts)

    prompt = Prompt("p", "Q", {"answer": 7, "level": "hard"})
    FunctionReward(remember, "r")([Candidate(prompt, 0, Text("A", (1, 2)))])
    assert seen == {
        "prompts": ["Q"],
        "completions": ["A"],
        "completion_ids": [[1, 2]],
        "answer": [7],
        "level": ["hard"],
    }


def test_chat_comes_as_messages() -> None:
    seen: list[Any] = []

    def remember(prompts: list[Any], completions: list[Any]) -> list[float]:
        seen.extend([prompts, completions])
        return [1.0]

    prompt = Prompt("p", ({"role": "user", "content": "Q"},))
    FunctionReward(remember, "r")([Candidate(prompt, 0, Text("A"))])
    assert seen == [[[{"role": "user", "content": "Q"}]], [[{"role": "assistant", "content": "A"}]]]


def test_a_function_is_given_what_it_names_and_a_missing_column_is_named() -> None:
    def by_answer(completions: list[str], answer: list[int], bonus: float = 0.5) -> list[float]:
        return [a + bonus for a in answer]

    prompt = Prompt("p", "Q", {"answer": 7})
    assert FunctionReward(by_answer, "r")([Candidate(prompt, 0, Text("A"))]) == [7.5]
    with pytest.raises(UserError, match="column 'answer'; the prompts have none"):
        FunctionReward(by_answer, "r")(FOUR)


def test_any_callable_is_a_reward_and_exit_is_an_error() -> None:
    import functools

    def scaled(completions: list[str], by: float) -> list[float]:
        return [by * len(c) for c in completions]

    class Length:
        def __call__(self, completions: list[str]) -> list[float]:
            return [float(len(c)) for c in completions]

    both = rewards(functools.partial(scaled, by=2.0), Length())(FOUR)
    assert [one.reward for one in both] == [3, 6, 9, 0]

    def leaves(completions: list[str]) -> list[float]:
        raise SystemExit(0)

    with pytest.raises(UserError, match="reward 'leaves' raised SystemExit"):
        rewards(leaves)(FOUR)


def test_coroutines_are_awaited_inside_a_running_loop_too() -> None:
    import asyncio

    async def later(completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    async def notebook() -> Any:
        return FunctionReward(later, "r")(FOUR)

    assert asyncio.run(notebook()) == [1.0] * 4


def test_coroutines_are_awaited() -> None:
    async def later(completions: list[str]) -> list[float]:
        return [float(len(c)) for c in completions]

    assert FunctionReward(later, "r")(FOUR) == [1, 2, 3, 0]


def test_functions_by_module_and_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text("def length(completions):\n    return [len(c) for c in completions]\n")
    by_file = pick.reward(RewardConfig(use="my_rewards.py:length"), tmp_path)
    assert (by_file.name, by_file(FOUR)) == ("length", [1, 2, 3, 0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    by_module = pick.reward(RewardConfig(use="my_rewards:length", name="n"))
    assert (by_module.name, by_module(FOUR)) == ("n", [1, 2, 3, 0])
    for spec, said in [
        ("my_rewards:nothing", "no 'nothing'"),
        ("nowhere_at_all:f", "ModuleNotFoundError"),
        ("absent.py:f", "no file"),
        ("vaderr", "unknown"),
    ]:
        with pytest.raises(UserError, match=said):
            pick.reward(RewardConfig(use=spec), tmp_path)


def test_vader_is_the_packages_compound_score() -> None:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    texts = ["I love it, wonderful!", "A dreadful, boring mess.", "", "The table is brown."]
    wanted = [SentimentIntensityAnalyzer().polarity_scores(text)["compound"] for text in texts]
    assert Vader()([candidate("a", i, text) for i, text in enumerate(texts)]) == wanted
    assert wanted[0] > 0.5 > -0.5 > wanted[1]


def classifier(folder: Path, labels: int, family: str = "llama", **changes: Any) -> Path:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(3)
    config = AutoConfig.for_model(
        family, **{**COMMON, **SMALL, "num_key_value_heads": 2, "num_labels": labels, **changes}
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def by_hand(folder: Path, texts: list[str]) -> list[torch.Tensor]:
    """One unpadded text at a time."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = build_tokenizer()
    with torch.inference_mode():
        return [model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in texts]


ANSWERS = ["good", "a much longer answer than that", "b", "four words in here"]


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_reward_model_equals_one_text_at_a_time(family: str, budget: int, tmp_path: Path) -> None:
    folder = classifier(tmp_path, 1, family)
    candidates = [candidate("p0", i, text) for i, text in enumerate(ANSWERS)]
    found = ClassifierReward(str(folder), batch_tokens=budget)(candidates)
    wanted = [logits[0].item() for logits in by_hand(folder, ["text of p0" + text for text in ANSWERS])]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert len(set(found)) == 4


def test_classifier_gives_the_labels_log_probability(tmp_path: Path) -> None:
    folder = classifier(
        tmp_path, 3, id2label={0: "bad", 1: "fine", 2: "good"}, label2id={"bad": 0, "fine": 1, "good": 2}
    )
    candidates = [candidate("p0", i, text) for i, text in enumerate(ANSWERS)]
    found = ClassifierReward(str(folder), label="good")(candidates)
    wanted = [logits.log_softmax(-1)[2].item() for logits in by_hand(folder, ["text of p0" + t for t in ANSWERS])]
    assert found == pytest.approx(wanted, abs=1e-5)
    for label in (None, "best"):
        with pytest.raises(UserError, match="one of bad, fine, good"):
            ClassifierReward(str(folder), label=label)(candidates)


def test_reward_model_uses_its_own_chat_template_once(tmp_path: Path) -> None:
    folder = classifier(tmp_path, 1)
    chat = Candidate(Prompt("c", ({"role": "user", "content": "Hi"},)), 0, Text("Hello"))
    found = ClassifierReward(str(folder))([chat])
    assert found == pytest.approx([by_hand(folder, ["<s>[user]Hi</s>[assistant]Hello</s>"])[0].item()], abs=1e-5)


def test_answers_are_tokenized_together_as_one_by_one() -> None:
    tokenizer = build_tokenizer()
    chat = tuple({"role": role, "content": role + "!"} for role in ("user", "assistant", "user"))
    asked = [("a text", " and more"), (chat, "Hello"), ("<s>with its begin", ""), (chat[:1], ""), ("é", "🙂")]
    assert encode_answers(tokenizer, asked) == [encode_answered(tokenizer, *one) for one in asked]
    assert len(set(map(tuple, encode_answers(tokenizer, asked)))) == len(asked)
    assert encode_answers(tokenizer, []) == []


def test_equal_inputs_go_through_the_reward_model_once(tmp_path: Path) -> None:
    folder, rows = classifier(tmp_path, 1), []
    reward = ClassifierReward(str(folder))
    reward([candidate("p0", 0, "before")])
    model, _ = resident.get(str(folder), "classify", lambda: pytest.fail("it is in memory"))
    model.register_forward_pre_hook(lambda _, args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True)
    texts = ["good", "other", "good", "good", "other", "third"]
    found = reward([candidate("p0", i, text) for i, text in enumerate(texts)])
    assert sum(rows) == 3
    wanted = [logits[0].item() for logits in by_hand(folder, ["text of p0" + text for text in texts])]
    assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_bfloat16_reward_model_does_not_round_its_logits(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = classifier(tmp_path, 1, family)
    monkeypatch.setenv("RAFTUNE_DTYPE", "bfloat16")
    texts = [f"answer {i}" for i in range(40)]
    asked = [candidate("p0", i, text) for i, text in enumerate(texts)]
    found = torch.tensor(ClassifierReward(str(folder), batch_tokens=1)(asked))
    half = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).eval()
    head = [part for part in half.children() if part is not half.base_model][-1]
    wanted = []
    with torch.inference_mode():
        for text in texts:  # the body in bfloat16, the head in float64
            out = half.base_model(torch.tensor([build_tokenizer()("text of p0" + text)["input_ids"]]))
            state = out.pooler_output[0] if family == "bert" else out.last_hidden_state[0, -1]
            bias = 0 if head.bias is None else head.bias.double()
            wanted.append((head.weight.double() @ state.double() + bias).item())
    assert torch.allclose(found.double(), torch.tensor(wanted, dtype=torch.float64), atol=1e-5, rtol=1e-5)
    assert (found != found.bfloat16().float()).sum() > 30  # off the coarse grid


def test_near_certainty_log_probabilities_still_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = classifier(tmp_path, 2, label2id={"bad": 0, "good": 1}, id2label={0: "bad", 1: "good"})
    reward = ClassifierReward(str(folder), label="good")
    monkeypatch.setattr(ClassifierReward, "logits", lambda *_: [[0.0, 20.0], [0.0, 20.5], [0.0, 30.0]])
    first, second, third = reward([candidate("p0", i, "x") for i in range(3)])
    assert first < second < third < 0
    assert first == pytest.approx(-math.exp(-20), rel=1e-6)


def test_inputs_too_long_for_the_reward_model_are_not_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = classifier(tmp_path, 1, max_position_embeddings=20)
    found = ClassifierReward(str(folder))([candidate("p0", 0, "short"), candidate("p0", 1, "much too long for it")])
    assert found[0] is not None
    assert found[1] is None
    assert "1 inputs over 20 tokens" in caplog.text


def test_a_classifier_by_recipe(tmp_path: Path, model_of: Callable[..., Path]) -> None:
    classifier(tmp_path / "rm", 1)
    found = pick.reward(RewardConfig(use="classifier:rm", name="taste"), tmp_path)
    assert found.name == "taste"
    assert len(found(FOUR)) == 4
