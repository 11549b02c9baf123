"""The recipes that ship: they read, their data is usable, their rewards tell better from worse, the sums are right."""

from __future__ import annotations

import ast
import json
import math
import operator
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from raftune import build, pick
from raftune.imports import import_object
from raftune.prompts import parse, read_rows, tidy
from raftune.recipe import load
from raftune.types import Candidate, Prompt, Text

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
FILES = (".jsonl", ".json", ".parquet")
PARTS = ("acknowledges", "speaks_to_you", "invites", "no_lecture", "plain", "brevity")


def part(name: str, file: str = "companion_rewards.py") -> Callable[..., list[float]]:
    return import_object(f"{file}:{name}", RECIPES)


PREPARED = ("imdb", "hh")  # their data is the user's; a script beside the recipe prepares it


@pytest.mark.parametrize("name", PREPARED)
def test_a_prepared_recipe_reads(name: str) -> None:
    assert load(RECIPES / f"{name}.yaml").prompts.path.startswith(f"../runs/{name}/")
    assert subprocess.run(["bash", "-n", RECIPES / f"{name}.sh"]).returncode == 0


@pytest.mark.parametrize("name", sorted({*NAMES} - {*PREPARED}))
def test_every_recipe_reads_and_its_prompts_are_usable(name: str) -> None:
    recipe = load(RECIPES / f"{name}.yaml")
    sets = [recipe.prompts.path, recipe.prompts.heldout, *(one.path for one in recipe.evaluate.also.values())]
    for path in (one for one in sets if isinstance(one, str) and one.endswith(FILES)):
        usable, counts = tidy(parse(read_rows(str(RECIPES / path)), recipe.prompts.column))
        assert counts == {"rows": len(usable), "duplicate": 0, "empty": 0, "too_long": 0}, path
    if recipe.prompts.path.endswith(FILES):
        build.prompts(recipe, None, RECIPES)  # enough are left for a round


# companion


def test_companion_has_enough_prompts_and_all_are_different() -> None:
    split = build.prompts(load(RECIPES / "companion.yaml"), None, RECIPES)
    assert len(split.train) >= 210
    assert len(split.heldout) == 50
    prompts = [*split.train, *split.heldout]
    talks = [[turn["role"] for turn in prompt.content] for prompt in prompts if not isinstance(prompt.content, str)]
    assert {tuple(roles) for roles in talks} == {("user",), ("user", "assistant", "user")}
    assert 0.2 < sum(len(roles) == 3 for roles in talks) / len(prompts) < 0.3
    said = [frozenset(re.findall(r"\w+", str(prompt.content[-1]).lower())) for prompt in prompts]
    for place, one in enumerate(said):  # no two say nearly the same words
        assert all(len(one & other) / len(one | other) < 0.6 for other in said[:place]), prompts[place].content


BETTER = {
    "acknowledges": (
        "I'm so sorry to hear that. Two points short must hurt, you have every right to be disappointed.",
        "Two points are not a lot. The next exam takes place in the autumn, as far as anybody knows.",
    ),
    "speaks_to_you": (
        "You worked so hard for this, and I can hear how much it meant to you.",
        "Exams are a part of the educational system and many students fail them.",
    ),
    "invites": (
        "That's a hard evening to be alone with. What was the worst part for you?",
        "That's a hard evening to be alone with. It will get better.",
    ),
    "no_lecture": (
        "It's okay to be angry today. You don't have to plan anything yet.",
        "As an AI, here is what you should do:\n1. You must make a plan.\n2. You need to study more.\n3. Try to rest.",
    ),
    "plain": (
        "I'm sorry, that was such a hard day, and you had worked so long for it.",
        "Deutsch: Aufwahl Leitung erstellen, metric-to-metric phenomenon, komaer ja eisorpakkor keskustil.",
    ),
    "brevity": (
        "I'm sorry. You worked so hard, and it still went wrong. Do you want to tell me about it?",
        "I'm sorry. You worked so hard, and it still went wrong, and in that sort of situation it is often the",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_tells_better_from_worse(name: str) -> None:
    better, worse = part(name)(prompts=["", ""], completions=list(BETTER[name]))
    assert better > worse + 0.3
    chats = [[{"role": "assistant", "content": text}] for text in BETTER[name]]
    assert part(name)(prompts=[], completions=chats) == [better, worse]


def test_what_is_not_meant_does_not_count() -> None:
    sorry, helpdesk = "I'm sorry you failed.", "I'm sorry for the misunderstanding."
    assert part("acknowledges")([sorry, helpdesk])[1] < part("acknowledges")([sorry, helpdesk])[0]
    late = "word " * 40 + sorry
    assert part("acknowledges")([late]) == [0.0]
    mine, yours = "I failed my own exam and my father told me off, you know.", "You failed your own exam, you said."
    assert part("speaks_to_you")([mine])[0] < part("speaks_to_you")([yours])[0]
    assert part("invites")(["Who invented exams?", "What do you need? Rest.", "What do you need?"]) == [0.0, 0.5, 1.0]
    assert part("no_lecture")(["Congratulations!", "You should sleep. You should eat."]) == [-0.5, -0.25]
    loop = "I'm so sorry. " * 12
    assert part("plain")([loop])[0] < 0.3
    assert part("brevity")(["Oh no.", "It hurts. " * 100]) == [pytest.approx(2 / 15), 0.0]


FUNCTIONS = {name: part(name) for name in PARTS}
HOSTILE = [
    "",
    " \n\t",
    "?",
    "!!!",
    "💥" * 50,
    "you" * 1000,
    "you " * 500,
    "1. " * 300,
    "\x00\ud7ff",
    "«Ça va ?»",
    "\n" * 5000,
]


def within(name: str, value: float) -> bool:
    low = -1.0 if name == "no_lecture" else 0.0
    return math.isfinite(value) and low <= value <= low + 1


@pytest.mark.parametrize("name", PARTS)
def test_hostile_text_gets_a_number(name: str) -> None:
    values = part(name)([*HOSTILE, [{"role": "assistant", "content": None}], []])
    assert len(values) == len(HOSTILE) + 2
    assert all(within(name, value) for value in values)


@given(text=st.text(max_size=80))
@settings(max_examples=50)
def test_any_text_gets_a_number(text: str) -> None:
    for name, function in FUNCTIONS.items():
        assert within(name, function([text])[0])


def test_the_composite_prefers_what_a_person_would() -> None:
    """With the recipe's own weights, among answers to one message."""
    asked = Prompt("p", ({"role": "user", "content": "I got 58 and the pass mark is 60. Two points. Two."},))
    good = [
        "Oh no, two points. I'm so sorry, that must hurt more than failing by twenty. How are you tonight?",
        "That sounds so frustrating. You were so close, and you're allowed to be angry. Do you want to talk about it?",
    ]
    bad = [
        "58 is less than 60, so the exam was not passed. The pass mark is set by the board of the university.",
        "Congratulations on your great result! I'm thrilled for you. You are amazing, wonderful, brilliant and happy!",
        "As an AI language model, I suggest:\n1. Make a plan\n2. Study harder\n3. You should ask your teacher",
        "I'm sorry for the confusion. How can I assist you today?",
        "you you you you you you you you you you you you you you you you you you you you?",
        "",
    ]
    rewards = pick.rewards(load(RECIPES / "companion.yaml").reward, RECIPES)
    scored = rewards([Candidate(asked, index, Text(text)) for index, text in enumerate([*good, *bad])])
    values = [one.reward for one in scored if one.reward is not None]
    assert len(values) == len(good) + len(bad)
    assert min(values[: len(good)]) > max(values[len(good) :]) + 0.3


def test_the_monitor_pools_what_is_no_padding() -> None:
    """A batch of texts of unlike length against each text alone, pooled by hand."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=260, max_position_embeddings=64, **sizes)).eval()
    tokenizer = build_tokenizer()
    texts = ["short", "a text that is a good deal longer", "x" * 200]
    found = part("embed", "relevance.py")(model, tokenizer, texts)
    for text, row in zip(texts, found, strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([tokenizer(text)["input_ids"][:64]])).last_hidden_state[0]
        torch.testing.assert_close(row, torch.nn.functional.normalize(states.mean(0), dim=0))


@pytest.mark.real
@pytest.mark.real
def test_the_monitor_knows_what_an_answer_is_about() -> None:
    asked = [[{"role": "user", "content": "I failed my driving test because I hit the kerb."}]] * 3
    said = ["I'm sorry about the driving test. Was the kerb high?", "The capital of France has many museums.", " "]
    answers = [[{"role": "assistant", "content": text}] for text in said]
    near, far, empty = part("relevance", "relevance.py")(asked, answers)
    assert near > far + 0.3
    assert empty is None


# math

ROWS = [json.loads(line) for line in (RECIPES / "math.jsonl").read_text(encoding="utf-8").splitlines()]
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
SAID = {"half": 2, "twice": 2, "two": 2, "weeks": 7}


def worth(node: ast.expr) -> float:
    """The value of a sum of whole numbers, and of nothing else."""
    if isinstance(node, ast.BinOp):
        return SIGNS[type(node.op)](worth(node.left), worth(node.right))
    assert isinstance(node, ast.Constant)
    assert type(node.value) is int
    return node.value


def test_math_is_what_its_script_writes() -> None:
    assert import_object("make_math.py:problems", RECIPES)() == ROWS
    assert len(ROWS) == 400
    assert len({row["prompt"][-1]["content"] for row in ROWS}) == 400
    assert len({row["id"].rpartition("-")[0] for row in ROWS}) >= 30


def test_every_answer_of_math_is_right() -> None:
    """Each step is worked out again from the text, uses only what was asked or found before, and leads to the end."""
    for row in ROWS:
        question = row["prompt"][-1]["content"]
        known = {int(number) for number in re.findall(r"\d+", question)}
        known |= {value for word, value in SAID.items() if word in question.lower()}
        solution, _, final = row["answer"].partition("\n#### ")
        steps = re.findall(r"(\S+)=<<(\S+)=(\d+)>>(\d+)", solution)
        assert solution.count("<<") == len(steps) in (1, 2), row
        result = None
        for before, inside, value, after in steps:
            assert before == inside, row
            assert {int(number) for number in re.findall(r"\d+", inside)} <= known, row
            result = worth(ast.parse(inside, mode="eval").body)
            assert result == int(value) == int(after) > 0, row
            known.add(int(value))
        assert result == int(final), row


def test_the_examples_of_math_are_right_and_no_problem_of_it() -> None:
    examples = ROWS[0]["prompt"][:-1]
    assert all(row["prompt"][:-1] == examples for row in ROWS)
    answers: list[Any] = [turn["content"] for turn in examples if turn["role"] == "assistant"]
    assert len(answers) == 4
    for answer in answers:
        steps = re.findall(r"([\d*+-]+)=(\d+)", answer)
        assert all(worth(ast.parse(left, mode="eval").body) == int(right) for left, right in steps)
        assert answer.endswith(f"#### {steps[-1][1]}")


# imdb and hh: what their scripts make of a user's data


def prepared(script: str, rows: list[dict[str, Any]], folder: Path) -> dict[str, list[dict[str, Any]]]:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    module = runpy.run_path(str(RECIPES / f"{script}.py"))
    module["main"](str(folder / "rows.jsonl"), folder / "out")
    return {path.stem: [row for _, row in read_rows(str(path))] for path in (folder / "out").glob("*.jsonl")}


def test_the_parts_of_imdb_share_no_review(tmp_path: Path) -> None:
    module = runpy.run_path(str(RECIPES / "imdb.py"))
    rows = [{"text": f"review {n} " + "word<br />" * 70, "label": n % 2} for n in range(60)]
    parts = module["split"]([*rows, *rows], {"reward": 20, "monitor": 25, "openings": 15})
    texts = {name: {one["text"] for one in some} for name, some in parts.items()}
    assert [len(texts[name]) for name in parts] == [20, 25, 15]  # doubles count once
    assert len(set.union(*texts.values())) == 60
    again = module["split"](rows[::-1], {"reward": 20, "monitor": 25, "openings": 15})
    assert {one["text"] for one in again["reward"]} == texts["reward"]  # whatever the order of the file
    opening = module["row_of"]("openings", parts["openings"][0])
    assert len(opening["prompt"].split()) == 12
    assert opening["prompt"] + opening["reference"] == " ".join(parts["openings"][0]["text"].split()[:60])
    assert "<br" not in opening["reference"]
    with pytest.raises(SystemExit, match="60 usable reviews"):
        module["split"](rows, {"reward": 61})


def test_the_parts_of_hh_share_no_prompt(tmp_path: Path) -> None:
    rows = [
        {
            "chosen": f"\n\nHuman: Question {n // 2}?\n\nAssistant: Yes {n}.",
            "rejected": f"\n\nHuman: Question {n // 2}?\n\nAssistant: No {n}.",
        }
        for n in range(40)
    ]
    odd = [
        {"chosen": "no dialogue", "rejected": "none"},
        {**rows[0], "rejected": "\n\nHuman: Other?\n\nAssistant: No."},
    ]
    parts = prepared("hh", [*rows, *odd], tmp_path)
    asked = {name: {row["prompt"][-1]["content"] for row in some} for name, some in parts.items()}
    assert sum(len(some) for some in asked.values()) == len(set.union(*asked.values())) == 20
    assert len(parts["pairs"]) == 2 * len(asked["pairs"])
    for pair in parts["pairs"]:
        assert pair["chosen"][0]["content"].startswith("Yes")
        assert pair["rejected"][0] == {
            "role": "assistant",
            "content": pair["chosen"][0]["content"].replace("Yes", "No"),
        }
    assert all(row["reference"].startswith("Yes") for row in parts["dialogues"])
