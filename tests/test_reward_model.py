"""Reward models: a planted preference is learned, figures equal brute force, and what trains is what is scored."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COMMON, SMALL, build_model, build_tokenizer
from test_demonstrations import BOS, bos_tokenizer, call

from raftune import interrupt
from raftune.errors import Interrupted, UserError
from raftune.evaluate import calibration
from raftune.files import FIGURES, read_json
from raftune.reward.classifier import ClassifierReward
from raftune.tune.reward_model import RewardLearner
from raftune.types import Candidate, Prompt, Text

PAD = build_tokenizer().pad_token_id


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def words(seed: int, letter: str) -> str:
    draw = random.Random(seed)
    return letter * draw.randint(3, 6) + "".join(draw.choices("mnop", k=4))


def planted(count: int) -> list[dict[str, Any]]:
    """People like z and not a."""
    return [{"prompt": f"{at} ", "chosen": words(at, "z"), "rejected": words(at + 1000, "a")} for at in range(count)]


def test_a_planted_preference_is_learned_and_serves(tmp_path: Path) -> None:
    base = build_model(tmp_path / "base", scale=1.0)
    data = write(tmp_path / "pairs.jsonl", [*planted(100), *planted(2)])
    out = tmp_path / "rm"
    result = call(
        *("reward-model", "--model", base, "--data", data, "--out", out, "--learning-rate", 3e-3),
        *("--heldout", 0.3, "--center", 0.01),
    )
    assert result.exit_code == 0, result.output
    figures = read_json(out / FIGURES)
    assert "rows dropped: 2 duplicate" in result.output
    assert (figures["train"], figures["heldout"]) == (70, 30)
    assert figures["heldout/accuracy"] > 0.9
    assert figures["heldout/auc"] > 0.9
    assert 0 <= figures["heldout/ece"] <= 1
    assert (out / "calibration.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "rm.tuning").exists()
    good, bad = ClassifierReward(str(out))(
        [Candidate(Prompt("p", "7 "), at, Text(text)) for at, text in enumerate(["zzzzmno", "aaaamno"])]
    )
    assert good is not None
    assert bad is not None
    assert good > bad


@pytest.mark.parametrize("names", [("0", "1"), ("bad", "fine", "good")])
def test_labelled_texts_make_a_classifier(tmp_path: Path, names: tuple[str, ...]) -> None:
    base = encoder(tmp_path / "base")
    rows = [{"text": words(at, "azq"[at % len(names)]), "label": names[at % len(names)]} for at in range(120)]
    out = tmp_path / "classifier"
    data = write(tmp_path / "rows.jsonl", rows)
    result = call(
        *("reward-model", "--model", base, "--data", data, "--out", out, "--learning-rate", 3e-3),
        *("--heldout", 0.3, "--epochs", 2),
    )
    assert result.exit_code == 0, result.output
    figures = read_json(out / FIGURES)
    assert figures["heldout/accuracy"] > 0.9
    assert figures["heldout/auc"] > 0.9
    assert figures["heldout/majority"] < 0.7
    found = ClassifierReward(str(out), label=names[1])([Candidate(Prompt("p", ""), 0, Text("zzzzmno"))])
    assert found[0] is not None
    assert np.exp(found[0]) > 0.5


def encoder(folder: Path) -> Path:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model("bert", **{**COMMON, **SMALL}))
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


class Seen:
    """The rows of ids, without padding, that go into any embedding of the model's vocabulary."""

    def __init__(self) -> None:
        self.rows: set[tuple[int, ...]] = set()

    def __enter__(self) -> Seen:
        self.handle = torch.nn.modules.module.register_module_forward_pre_hook(self._note)
        return self

    def _note(self, module: Any, arguments: Any) -> None:
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == COMMON["vocab_size"]:
            for row in arguments[0].tolist():
                self.rows.add(tuple(one for one in row if one != PAD))

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


@pytest.mark.parametrize("adds", [True, False], ids=["bos", "no-bos"])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "text"])
def test_what_trains_is_what_is_scored(tmp_path: Path, adds: bool, chat: bool) -> None:
    """The ids in the model's embedding, while it trains and while it serves; one beginning-of-sequence."""
    base = build_model(tmp_path / "base", scale=1.0)
    tokenizer = bos_tokenizer() if adds else build_tokenizer()
    tokenizer.save_pretrained(base)
    answers = [(f"{at} ", "yes" * (at % 3 + 1), "no") for at in range(6)]
    turns = "\n\nHuman: {}\n\nAssistant: {}" if chat else "{}{}"
    rows = [{"chosen": turns.format(q, a), "rejected": turns.format(q, b)} for q, a, b in answers]
    data = write(tmp_path / "pairs.jsonl", rows)
    with Seen() as trained:
        result = call(
            *("reward-model", "--model", base, "--data", data, "--out", tmp_path / "rm", "--heldout", 0),
            *("--batch-size", 2),
        )
    assert result.exit_code == 0, result.output
    candidates = [
        Candidate(Prompt(q, ({"role": "user", "content": q.strip()},) if chat else q), 0, Text(answer))
        for q, a, b in answers
        for answer in (a, b)
    ]
    with Seen() as served:
        ClassifierReward(str(tmp_path / "rm"), batch_tokens=1)(candidates)
    assert trained.rows == served.rows
    rendered = "<s>[user]{}</s>[assistant]{}</s>" if chat else ("<s>{}{}" if adds else "{}{}")
    assert served.rows == {
        tuple(tokenizer(rendered.format(q.strip() if chat else q, x), add_special_tokens=False)["input_ids"])
        for q, *both in answers
        for x in both
    }
    assert all(row[:2] != (BOS, BOS) for row in served.rows)


def test_a_base_without_a_template_gets_a_plain_one(tmp_path: Path) -> None:
    base = encoder(tmp_path / "base")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    (base / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(base)
    turns = "\n\nHuman: {}\n\nAssistant: {}"
    rows = [{"chosen": turns.format(at, "yes"), "rejected": turns.format(at, "no")} for at in range(4)]
    data = write(tmp_path / "pairs.jsonl", rows)
    chat = Candidate(Prompt("p", ({"role": "user", "content": "1"},)), 0, Text("yes"))
    result = call("reward-model", "--model", base, "--data", data, "--out", tmp_path / "rm", "--heldout", 0)
    assert result.exit_code == 0, result.output
    with Seen() as served:
        ClassifierReward(str(tmp_path / "rm"))([chat])
    assert served.rows == {tuple(tokenizer("<s>\n\nHuman: 1\n\nAssistant: yes</s>")["input_ids"])}
    untrained = call(
        *("reward-model", "--model", base, "--data", data, "--texts", "--out", tmp_path / "text", "--heldout", 0)
    )
    assert untrained.exit_code == 0, untrained.output
    with pytest.raises(UserError, match="classifier with a chat template"):
        ClassifierReward(str(tmp_path / "text"))([chat])


def test_one_step_is_the_textbooks(tmp_path: Path) -> None:
    """Adam's first step: each weight moves by the learning rate against the sign of its gradient; and the loss."""
    from transformers import AutoModelForSequenceClassification

    base = build_model(tmp_path / "base", scale=1.0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = PAD
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "start")
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path / "start")
    rows = [{"chosen_ids": [1, 2, 3], "rejected_ids": [4, 5]}, {"chosen_ids": [6, 7], "rejected_ids": [8, 9, 1, 2]}]
    loss = torch.zeros(())
    for row in rows:
        better, worse = (model(torch.tensor([row[side]])).logits[0, 0] for side in ("chosen_ids", "rejected_ids"))
        loss = loss + (-torch.nn.functional.logsigmoid(better - worse) + 0.1 * (better + worse) ** 2) / 2
    loss.backward()
    gradient = model.score.weight.grad
    before = model.score.weight.detach().clone()
    learner = RewardLearner(learning_rate=1e-3, center=0.1)
    figures = learner.train(tmp_path / "start", tokenizer, rows, None, tmp_path / "rm", tmp_path / "state", (0,))
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").score.weight
    assert figures["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert (figures["steps"], figures["tokens"]) == (1, 11)
    torch.testing.assert_close(after - before, -1e-3 * gradient.sign(), atol=2e-5, rtol=0)


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForSequenceClassification

    base = build_model(tmp_path / "base", scale=1.0)
    rows = [{"chosen_ids": [at % 50, 2, 3], "rejected_ids": [4] * (at % 5 + 1)} for at in range(20)]
    learner = RewardLearner(learning_rate=1e-3, epochs=2, batch_size=4)

    def train(name: str) -> dict[str, float]:
        return learner.train(base, build_tokenizer(), rows, None, tmp_path / name, tmp_path / f"{name}.tuning", (0,))

    train("undisturbed")
    asked = itertools.count()
    monkeypatch.setattr(interrupt, "requested", lambda: next(asked) == 3)
    monkeypatch.setattr(interrupt, "check", lambda: (_ for _ in ()).throw(Interrupted("SIGINT")))
    with pytest.raises(Interrupted):
        train("resumed")
    monkeypatch.undo()
    assert not (tmp_path / "resumed").exists()
    assert "tokens_per_s" not in train("resumed")
    one, other = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("undisturbed", "resumed")
    )
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_row_once_an_epoch_with_its_like() -> None:
    lengths = [random.Random(at).randint(1, 90) for at in range(43)]
    learner = RewardLearner(epochs=3, batch_size=4)
    order = learner.order(lengths, (0,))
    assert sorted(order) == sorted(list(range(43)) * 3)
    assert order == learner.order(lengths, (0,)) != learner.order(lengths, (1,))
    spans = [[lengths[at] for at in order[k : k + 4]] for k in range(0, 120, 4)]
    assert np.mean([max(span) - min(span) for span in spans]) < 15  # at random about 55


def test_figures_of_pairs_equal_brute_force() -> None:
    draw = np.random.default_rng(0)
    chosen, rejected = draw.normal(0.5, 1, 60), draw.normal(0, 1, 60)
    chosen[0] = rejected[0]
    figures = calibration.of_pairs(list(chosen), list(rejected)).figures
    margins = chosen - rejected
    assert figures["accuracy"] == pytest.approx((np.sum(margins > 0) + 0.5) / 60)
    wins = [(a > b) + (a == b) / 2 for a in margins for b in -margins]
    assert figures["auc"] == pytest.approx(np.mean(wins))


def test_the_calibration_error_by_hand() -> None:
    confidence = [0.95, 0.91, 0.85, 0.55, 0.6, 1.0, 0.6]
    right = [1, 0, 1, 0.5, 1, 1, 0]
    # (0.9, 1]: 0.95 0.91 1.0, two of three right; (0.8, 0.9]: 0.85; (0.5, 0.6]: 0.55 0.6 0.6, 1.5 of three right
    wanted = 3 / 7 * abs(2 / 3 - 2.86 / 3) + 1 / 7 * abs(1 - 0.85) + 3 / 7 * abs(0.5 - 1.75 / 3)
    assert calibration.expected_calibration_error(confidence, right) == pytest.approx(wanted)
    assert calibration.expected_calibration_error([0.0, 1.0], [0, 1]) == 0


def test_figures_of_classes_equal_brute_force() -> None:
    draw = np.random.default_rng(1)
    logits, labels = draw.normal(0, 2, (50, 2)), draw.integers(0, 2, 50)
    found = calibration.of_classes(logits.tolist(), labels.tolist(), ["no", "yes"])
    p = torch.tensor(logits).softmax(-1).numpy()
    assert found.figures["accuracy"] == pytest.approx(np.mean(p.argmax(-1) == labels))
    wins = [(a > b) + (a == b) / 2 for a in p[labels == 1, 1] for b in p[labels == 0, 1]]
    assert found.figures["auc"] == pytest.approx(np.mean(wins))
    np.testing.assert_allclose(found.confidence, p.max(-1))
    alone = calibration.of_classes(logits.tolist(), [1] * 50, ["no", "yes"]).figures
    assert "auc" not in alone
    assert alone["majority"] == 1
    with pytest.raises(UserError, match="not numbers; lower --learning-rate"):
        calibration.of_pairs([float("nan")], [0.0])


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"text": "a", "label": 0}, {"text": "b", "label": 0}], (), "every label is '0'"),
        ([{"text": "a", "label": 0}, {"text": "b", "label": 1}], ("--center", 0.1), "--center: is for pairs"),
        ([{"chosen": "same", "rejected": "same"}], (), "no usable row"),
        ([{"chosen": "a", "rejected": "b"}], (), "none to train on"),
    ],
)
def test_faults_are_one_line(
    rows: list[dict[str, Any]], options: tuple[Any, ...], said: str, tiny: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.jsonl", rows)
    result = call("reward-model", "--model", tiny, "--data", data, "--out", tmp_path / "rm", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "rm").exists()
