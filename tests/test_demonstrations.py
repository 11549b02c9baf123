"""Demonstrations: the shapes of rows, the rules, and their token ids, beginning-of-sequence once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import EOS, build_tokenizer
from typer.testing import CliRunner

from raftune.cli import app
from raftune.demonstrations import Demonstration, parse, tidy
from raftune.errors import UserError
from raftune.files import FIGURES, read_json
from raftune.prompts import read_rows, split_groups, subset
from raftune.tokens import encode_demonstration, encode_prompt, output_ids
from raftune.tune.text import TextLearner
from raftune.types import Candidate, Prompt, Scored, Text

BOS = 256
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
MORE = [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "So long"}]


def bos_tokenizer() -> Any:
    """Adds beginning-of-sequence to every text; its chat template writes it too."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    assert tokenizer("a")["input_ids"][0] == BOS
    return tokenizer


def demonstrations(*rows: dict[str, Any], **options: Any) -> list[Demonstration]:
    return parse([(f"row {at}", row) for at, row in enumerate(rows)], **options)


def test_each_shape_is_found_by_its_columns() -> None:
    found = demonstrations(
        {"prompt": "The film", "completion": " was good", "text": "ignored"},
        {"prompt": [USER], "completion": [ASSISTANT, *MORE]},
        {"messages": [USER, ASSISTANT, *MORE]},
        {"text": "A review."},
        {"text": "\n\nHuman: Hi\n\nAssistant: Hello"},
    )
    assert [(one.prompt, one.output) for one in found] == [
        ("The film", " was good"),
        ((USER,), "Hello"),
        ((USER, ASSISTANT, MORE[0]), "So long"),
        ((USER,), "Hello"),
        ((USER, ASSISTANT, MORE[0]), "So long"),
        (None, "A review."),
        ((USER,), "Hello"),
    ]
    assert found[3].group == found[4].group  # a conversation is held out whole
    assert demonstrations({"body": "Text", "text": "other"}, column="body")[0].output == "Text"
    assert demonstrations({"text": "\n\nHuman: Hi\n\nAssistant: Hello"}, dialogues=False)[0].prompt is None


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"prompt": "a"}, {}, "row 0: needs prompt and completion, messages, or text; it has prompt"),
        ({"text": "a"}, {"column": "body"}, "row 0: needs the column 'body'; it has text"),
        ({"prompt": "a", "completion": [ASSISTANT]}, {}, "give both alike"),
        ({"text": 5}, {}, "row 0: a prompt is a text"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        demonstrations(row, **options)


def test_what_falls_to_a_rule_is_counted() -> None:
    tokenizer = build_tokenizer()
    usable, counts = tidy(
        demonstrations(
            {"prompt": "ab", "completion": "cd"},
            {"prompt": "ab", "completion": "cd"},
            {"prompt": "ab", "completion": " "},
            {"prompt": "", "completion": "cd"},
            {"prompt": "ab", "completion": "much too long"},
            {"messages": [ASSISTANT]},
            {"text": "this is cut"},
            {"text": "this"},
        ),
        lambda one: encode_demonstration(tokenizer, one.prompt, one.output),
        6,
    )
    assert counts == {"examples": 8, "empty": 3, "duplicate": 1, "too_long": 1, "cut": 1}
    ids = tokenizer("this is cut")["input_ids"]
    assert (
        [one.pair for one in usable]
        == [
            (tokenizer("ab")["input_ids"], [*tokenizer("cd")["input_ids"], EOS]),
            (ids[:1], ids[1:6]),  # cut: its end is not learned
            (ids[:1], [*ids[1:4], EOS]),
        ]
    )


@pytest.mark.parametrize("adds", [True, False])
def test_beginning_of_sequence_comes_once(adds: bool) -> None:
    tokenizer = bos_tokenizer() if adds else build_tokenizer()
    begins = [BOS] if adds else []
    letters = tokenizer("ab", add_special_tokens=False)["input_ids"]
    chat, output = encode_demonstration(tokenizer, (USER,), "ab")
    assert chat == tokenizer("<s>[user]Hi</s>[assistant]", add_special_tokens=False)["input_ids"]
    assert output == [*letters, EOS]
    assert encode_demonstration(tokenizer, "ab", "ab") == ([*begins, *letters], [*letters, EOS])
    whole = [*begins, *letters, EOS]
    assert encode_demonstration(tokenizer, None, "ab") == (whole[:1], whole[1:])
    written = encode_prompt(tokenizer, Prompt("p", "<s>ab"))  # a template's output handed in as text
    assert written == [BOS, *letters]


@pytest.mark.parametrize("ends_with", ["<end_of_turn>", "</s>", ""])
def test_a_turn_ends_as_the_template_ends_it(ends_with: str) -> None:
    """Gemma's turns end with another token than its texts; where the template writes no token, end-of-sequence does."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}" + ends_with + "\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = ({"role": "user", "content": "Well?"},)
    end = tokenizer.convert_tokens_to_ids(ends_with or "</s>")
    prompt, output = encode_demonstration(tokenizer, chat, "Yes.")
    assert (tokenizer.decode(prompt + output[:-1]), output[-1]) == (
        f"[user]Well?{ends_with}\n[assistant]Yes.",
        end,
    )
    assert encode_demonstration(tokenizer, "Well?", "Yes.")[1][-1] == tokenizer.eos_token_id  # a text is no turn
    by_a_person = Text("Yes.")
    assert output_ids(tokenizer, by_a_person, chat=True) == output
    assert output_ids(tokenizer, Text("Yes", finish_reason="length"), chat=True) == output[:-2]


def test_groups_are_held_out_whole_and_whatever_their_order() -> None:
    items = [f"{at % 20} {at}" for at in range(60)]
    train, held = split_groups(items, lambda one: one.split()[0], 0.2, 0)
    assert sorted([*train, *held]) == sorted(items)
    assert len(held) == 12
    assert not {one.split()[0] for one in train} & {one.split()[0] for one in held}
    assert sorted(split_groups(items[::-1], lambda one: one.split()[0], 0.2, 0)[1]) == sorted(held)
    assert split_groups(items, lambda one: one.split()[0], 0.2, 1)[1] != held
    assert split_groups(items, str, 0, 0) == (items, [])
    with pytest.raises(UserError, match="none to train on"):
        split_groups(["a", "a"], str, 0.5, 0)


def test_a_subset_is_the_seeds_and_keeps_the_order() -> None:
    items = list(range(100))
    some = subset(items, 10, 0)
    assert some == sorted(some) == subset(items, 10, 0) != subset(items, 10, 1)
    assert subset(items, None, 0) == subset(items, 200, 0) == items


def test_zipped_lines_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as lines:
        lines.write('{"text": "a"}\n{"text": "b"}\n')
    assert [row for _, row in read_rows(str(tmp_path / "a.jsonl.gz"))] == [{"text": "a"}, {"text": "b"}]
    (tmp_path / "b.jsonl.gz").write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-12])
    (tmp_path / "c.jsonl.gz").write_text("plain")
    for name in ("b", "c"):
        with pytest.raises(UserError, match="not a whole gzip file"):
            read_rows(str(tmp_path / f"{name}.jsonl.gz"))


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_sft_is_the_learners_tuning_on_the_same_pairs(tiny: Path, tmp_path: Path) -> None:
    """The command ends with the weights of TextLearner on the same outputs; held-out perplexity by the library."""
    import math

    import torch
    from transformers import AutoModelForCausalLM

    rows = [{"prompt": f"Say {at}: ", "completion": "abc" * (at % 3 + 1)} for at in range(20)]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    options = ("--learning-rate", 1e-2, "--epochs", 3, "--heldout", 0.2)
    result = call("sft", "--policy", tiny, "--data", data, "--out", tmp_path / "sft", *options)
    assert result.exit_code == 0, result.output
    found = parse([("", row) for row in rows])
    train, held = split_groups(found, lambda one: one.group, 0.2, 0)
    chosen = [Scored(Candidate(Prompt("p", str(one.prompt)), 0, Text(one.output)), None) for one in train]
    TextLearner(learning_rate=1e-2, epochs=3).tune(tiny, chosen, tmp_path / "by-hand", (0, "sft"))
    ours, wanted = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("sft", "by-hand"))
    for one, other in zip(ours.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(one, other)
    figures = read_json(tmp_path / "sft" / FIGURES)
    assert (figures["train"], figures["heldout"], figures["examples"]) == (16, 4, 20)
    for name, model in (("perplexity_before", AutoModelForCausalLM.from_pretrained(tiny)), ("perplexity", ours)):
        total = tokens = 0.0
        for one in held:
            prompt, output = encode_demonstration(build_tokenizer(), one.prompt, one.output)
            labels = torch.tensor([[-100] * len(prompt) + output])
            with torch.inference_mode():
                total += model(torch.tensor([prompt + output]), labels=labels).loss.item() * len(output)
            tokens += len(output)
        assert figures[f"heldout/{name}"] == pytest.approx(math.exp(total / tokens), rel=1e-3)
    assert figures["heldout/perplexity"] < figures["heldout/perplexity_before"] / 10


def test_sft_says_what_it_dropped_and_cut(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in ["one", "one", "two", " ", "three four five six"]))
    result = call(
        *("sft", "--policy", tiny, "--data", data, "--out", tmp_path / "sft", "--max-tokens", 10),
        *("--heldout", 0, "--lora", "--lora-r", 2),
    )
    assert result.exit_code == 0, result.output
    assert "examples dropped: 1 empty, 1 duplicate" in result.output
    assert "texts cut at 10 tokens: 1" in result.output
    assert (tmp_path / "sft" / "adapter_config.json").exists()
    figures = read_json(tmp_path / "sft" / FIGURES)
    assert "heldout/perplexity" not in figures
    assert figures["cut"] == 1
    other = call("sft", "--policy", tiny, "--data", data, "--out", tmp_path / "x", "--column", "body")
    assert other.exit_code == 2
