"""Verifiers as rewards: right and wrong answers, references as data sets have them, and outputs that mean harm."""

from __future__ import annotations

import json
import logging
import resource
import threading
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import candidate
from hypothesis import given
from hypothesis import strategies as st

from raftune import pick
from raftune.config import RewardConfig
from raftune.errors import UserError
from raftune.picture import Picture
from raftune.protocols import Reward
from raftune.reward.checks import delimited
from raftune.reward.child import Child
from raftune.reward.form import LengthReward, RegexReward, RepetitionReward
from raftune.reward.json_answer import JsonReward, JsonSchemaReward
from raftune.reward.math_answer import MathReward
from raftune.types import Candidate, Prompt, Text

SOLUTION = """Natalia sold 48/2 = <<48/2=24>>24 clips in May.
Her answer for both: 48+24 = <<48+24=72>>72 clips.
#### 72"""
SLOW = r"^(a|aa)+$"  # backtracks without end on
LOOP = "a" * 60 + "b"


def cpu() -> float:
    """Seconds of CPU time so far, of the children too: a busy machine fails no test."""
    return time.process_time() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def of(use: str, beside: Path = Path()) -> Reward:
    return pick.reward(RewardConfig(use=use), beside)


def values(reward: Reward, *texts: str) -> list[float | None]:
    return list(reward([candidate("p0", i, text) for i, text in enumerate(texts)]))


def answers(pairs: Sequence[tuple[object, str]], column: str = "answer") -> list[Candidate]:
    return [Candidate(Prompt(f"p{i}", "Q", {column: ref}), 0, Text(text)) for i, (ref, text) in enumerate(pairs)]


RIGHT: list[tuple[object, str]] = [
    (SOLUTION, "72"),
    (SOLUTION, "48/2 = 24, and 48 + 24 = 72.\n#### 72"),
    (SOLUTION, "The answer is 72 clips."),
    (SOLUTION, r"So it is \boxed{72}, by 5 o'clock."),
    (SOLUTION, "#### 72\n5 more words"),
    (SOLUTION, "#### Step 1\n#### The end\nThis makes $72$"),
    ("She has $1,000 + $234.\n#### 1,234", "$1,234.00"),
    ("#### 1,234", "1234"),
    ("#### -5", "-5"),
    ("#### $18.50", r"$\frac{37}{2}$"),
    ("$1,234", "#### $1,234"),
    (7, "7"),
    (0.1, "1/10"),
    (1e-7, "0.0000001"),
    (r"2\sqrt{3}", r"$\sqrt{12}$"),
    (r"$2\sqrt{3}$", r"\boxed{2\sqrt3}"),
    (r"\frac12", "0.5"),
    (r"\text{east}", r"\boxed{\text{east}}"),
    (r"(3, \infty)", r"$x \in (3,\infty)$"),
    ("x+1", "$1+x$"),
]
WRONG: list[tuple[object, str]] = [
    (SOLUTION, "71"),
    (SOLUTION, "72? No: 5"),
    (SOLUTION, "#### 71"),
    (SOLUTION, "seventy-two"),
    (SOLUTION, ""),
    ("#### -5", "5"),
    (r"2\sqrt{3}", "2"),
    ("#### 1,234", "1.234"),
    (r"\text{east}", r"\boxed{\text{west}}"),
]


def test_right_answers_have_1_and_wrong_or_missing_ones_0() -> None:
    found = of("math")(answers(RIGHT + WRONG))
    wanted = [1.0] * len(RIGHT) + [0.0] * len(WRONG)
    assert [(p, v) for p, v in zip(RIGHT + WRONG, found, strict=True)] == list(zip(RIGHT + WRONG, wanted, strict=True))


def test_math_reads_the_column_that_it_is_told() -> None:
    assert list(of("math:solution")(answers([(SOLUTION, "72"), (SOLUTION, "7")], "solution"))) == [1.0, 0.0]
    chat = Candidate(Prompt("c", ({"role": "user", "content": "Q"},), {"answer": 3}), 0, Text("It is 3."))
    assert list(of("math")([chat])) == [1.0]
    with pytest.raises(UserError, match=r"prompt 'p0' has no reference answer in the column 'answer' \(its columns: s"):
        of("math")(answers([(SOLUTION, "72")], "solution"))


@pytest.mark.parametrize("reference", ["Paris is nice", "", "#### ", None, True, [1], {"a": 1}])
def test_a_reference_without_an_answer_names_the_prompt(reference: object) -> None:
    with pytest.raises(UserError, match="prompt 'p1'"):
        MathReward()(answers([(1, "1"), (reference, "1")]))


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "{}.0", "{:,}.00"]))
def test_numbers_are_left_as_they_are(number: int, form: str) -> None:
    assert Decimal(delimited(form.format(number))) == number


def test_math_works_in_threads() -> None:
    """Where math-verify's own timeouts, which are signals, do not."""
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(MathReward()(answers([(72, "72"), (72, "1")])))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1.0, 0.0]] * 2


def test_outputs_that_mean_harm_are_neither_run_nor_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A tower of powers is no Python that a signal interrupts: the process that is at it ends."""
    monkeypatch.chdir(tmp_path)
    hostile = [
        "The answer is 10**9**9",
        r"\boxed{9^{9^{9^{9}}}}",
        "__import__('os').system('touch pwned')",
        "$__import__('os').system('touch pwned')$ exec(\"open('pwned','w')\")",
        "word " * 200_000,
        "12 " * 100_000,
        "\\boxed{" * 20_000,
        "\ud800 \x00 72",
    ]
    start = cpu()
    found = MathReward(seconds=0.5)(answers([(72, "72"), *((72, text) for text in hostile), (72, "72")]))
    assert cpu() - start < 30
    assert found[0] == found[-1] == 1.0
    assert found[1] is found[2] is None
    assert found[3:5] == [0.0, 0.0]
    assert all(value in {0.0, None} for value in found[5:-2])
    assert f"{found.count(None)} of 10 outputs not scored" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_cannot_begin_is_an_error() -> None:
    with Child("nonsense", 1.0) as child, pytest.raises(RuntimeError, match="checks nonsense could not begin"):
        child.ask("x")


def test_no_child_is_left() -> None:
    before = len(psutil.Process().children())
    with Child("schema", 0.2) as child:
        schema = json.dumps({"pattern": SLOW})
        assert child.ask(schema, '"aa"') is True
        assert child.ask(schema, json.dumps(LOOP)) is None
        assert child.ask(schema, '"aa"') is True
        assert len(psutil.Process().children()) == before + 1
    assert len(psutil.Process().children()) == before


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "s.json").write_text("{}")
    for use in ("math", "json-schema:s.json"):
        with pytest.raises(UserError, match=r"pip install 'raftune\[verify\]'"):
            of(use, tmp_path)


def test_regex_finds_and_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    assert values(of("regex:(?i)the answer: \\d+"), "So The Answer: 5", "answer 5", "") == [1.0, 0.0, 0.0]
    start = cpu()
    with caplog.at_level(logging.WARNING):
        assert values(RegexReward(SLOW, seconds=0.2), LOOP, "aaa", LOOP) == [None, 1.0, None]
    assert cpu() - start < 20
    assert "reward 'regex': 2 of 3 outputs not scored: no answer in 0.2 s" in caplog.text
    for wrong in ("(", "a{2,1}", "[z-a]"):
        with pytest.raises(UserError, match="reward 'regex': .* is not a pattern"):
            of(f"regex:{wrong}")


@given(st.integers(0, 30), st.integers(1, 30), st.integers(0, 100))
def test_length_is_a_trapezium_in_words(lo: int, more: int, count: int) -> None:
    hi = lo + more
    [found] = values(LengthReward(lo, hi), " ".join(["two\n"] * count))
    if lo <= count <= hi:
        assert found == 1
    elif count < lo:
        assert found == pytest.approx(count / lo)
    else:
        assert found == pytest.approx(max(0, 1 - (count - hi) / hi))


def test_length_by_name() -> None:
    assert of("length:20-60") == LengthReward(20, 60)
    for wrong in ("5", "60-20", "a-b", "-1-5", "0-0", "1-2-3"):
        with pytest.raises(UserError, match="write length:LO-HI"):
            of(f"length:{wrong}")


words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12)


@given(words)
def test_repetition_equals_brute_force(text: list[str]) -> None:
    """A 3-gram is repeated where an equal one began earlier."""
    starts = range(len(text) - 2)
    repeated = sum(any(text[i : i + 3] == text[j : j + 3] for j in range(i)) for i in starts)
    [found] = values(RepetitionReward(), "  ".join(text))
    assert found == pytest.approx(-repeated / len(starts) if len(starts) > 0 else 0)


def test_repetition_of_a_loop_nears_minus_one() -> None:
    assert values(of("repetition"), "no " * 1000, "all words differ here", "no no", "") == [
        pytest.approx(-997 / 998),
        0,
        0,
        0,
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(json_values, st.sampled_from(["{}", " \n{}\n", "```json\n{}\n```", "```\n{}```", "```JSON \n{}\n```\n"]))
def test_json_in_and_out_of_a_fence(value: Any, form: str) -> None:
    assert values(JsonReward(), form.replace("{}", json.dumps(value))) == [1.0]


NOT_JSON = ["", "no", "{'a': 1}", "NaN", "-Infinity", "[1, 2", "1 2", "Sure:\n```json\n1\n```", "```json\n```", "[1,]"]


def test_what_is_no_json() -> None:
    assert values(of("json"), *NOT_JSON) == [0.0] * len(NOT_JSON)
    start = cpu()
    hostile = ["[" * 1_000_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000, "\ud800", "x" * 1_000_000]
    assert values(of("json"), *hostile) == [0.0] * len(hostile)
    assert values(of("json"), "9" * 1_000_000, json.dumps("x" * 1_000_000)) == [1.0, 1.0]
    assert cpu() - start < 20


SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"name": {"$ref": "#/$defs/name"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"name": {"type": "string", "pattern": "^[A-Z]"}},
}


def test_json_schema_as_the_library_judges(tmp_path: Path) -> None:
    (tmp_path / "person.json").write_text(json.dumps(SCHEMA))
    outputs = [
        '{"name": "Ada", "age": 36}',
        '```json\n{"name": "Ada"}\n```',
        '{"name": "ada"}',
        '{"name": "Ada", "age": -1}',
        '{"name": "Ada", "x": 1}',
        "{}",
        "Ada",
        "[" * 100_000 + "]" * 100_000,
        '{"name": "Ada", "age": ' + "9" * 10_000 + "}",
    ]
    reward = of("json-schema:person.json", tmp_path)
    assert values(reward, *outputs) == [1.0, 1.0] + [0.0] * 7
    (tmp_path / "other.json").write_text(json.dumps(SCHEMA | {"required": []}))
    other = of("json-schema:other.json", tmp_path)
    assert values(other, "{}") == [1.0]
    assert reward.version != other.version  # type: ignore[attr-defined]


def test_a_schema_whose_pattern_backtracks_does_not_hang_the_run(caplog: pytest.LogCaptureFixture) -> None:
    reward = JsonSchemaReward(json.dumps({"type": "string", "pattern": SLOW}), seconds=0.5)
    start = cpu()
    assert values(reward, json.dumps(LOOP), '"aa"', '"b"') == [None, 1.0, 0.0]
    assert cpu() - start < 20
    assert "1 of 3 outputs not scored" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ('{"type": "strin"}', r"wrong at \$.type"),
        ("[]", "wrong at"),
        ('{"$schema": "http://json-schema.org/draft-07/schema#"}', "write it in the draft 2020-12"),
        ('{"properties": {"a": {"$ref": "https://example.com/s.json"}}}', "refers to 'https://example.com/s.json'"),
        ('{"items": {"$ref": "#/$defs/gone"}}', "put it under"),
    ],
)
def test_bad_schemas_are_faults_of_the_user(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        of("json-schema:s.json", tmp_path)
    assert "\n" not in str(error.value)


def test_a_schema_may_name_what_only_looks_like_a_reference(tmp_path: Path) -> None:
    schema = {"properties": {"$ref": {"type": "string"}}, "const": {"$ref": "x"}, "examples": [{"$ref": "y"}]}
    assert values(JsonSchemaReward(json.dumps(schema)), '{"$ref": "x"}', '{"$ref": 1}') == [1.0, 0.0]
    with pytest.raises(UserError, match=r"absent\.json cannot be read"):
        of("json-schema:absent.json", tmp_path)


@pytest.mark.parametrize("use", ["math", "regex:a", "length:1-2", "repetition", "json", "json-schema:s.json"])
def test_verifiers_are_of_texts(use: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{}")
    reward = of(use, tmp_path)
    assert reward.name == use.partition(":")[0]
    with pytest.raises(UserError, match="scores texts; the output of prompt 'p' is a Picture"):
        reward([Candidate(Prompt("p", "Q", {"answer": 1}), 0, Picture("0", 1, 1))])
