"""Filters before ranking against brute force, in a run and on the command line."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import candidate
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from raftune import table
from raftune.cli import app
from raftune.errors import UserError
from raftune.filters import Filtered, Filters, repetition
from raftune.pick import select
from raftune.picture import Picture
from raftune.rank import Best, Floor, NothingChosen, Random, Top, choose
from raftune.recipe import load
from raftune.types import Candidate, Prompt, Scored

CODEC = table.TextCodec()
Pool = list[Scored]


def one(prompt: str, index: int, text: str, reward: float | None, finished: bool = True) -> Scored:
    return Scored(candidate(prompt, index, text, finish_reason="stop" if finished else "length"), reward)


def keys(some: Pool) -> list[tuple[str, int]]:
    return [table.key_of(scored) for scored in some]


texts = st.lists(st.sampled_from(["a", "b", "no", "\n"]), max_size=8).map(" ".join)
rows = st.tuples(st.sampled_from("xyz"), texts, st.none() | st.integers(0, 3).map(float), st.booleans())
pools = st.lists(rows, max_size=20).map(lambda some: [one(p, i, t, r, f) for i, (p, t, r, f) in enumerate(some)])
some_filters = st.builds(
    Filters,
    finished=st.booleans(),
    repetition=st.none() | st.sampled_from([0.0, 0.2, 0.5]),
    length=st.none() | st.tuples(st.integers(0, 4), st.none() | st.integers(4, 8)),
    deduplicate=st.booleans(),
    regex=st.none() | st.just("[ab]"),
    without=st.none() | st.just("no"),
)


def first_failed(pool: Pool, place: int, filters: Filters) -> str | None:
    """The first filter that a candidate fails, looked up one candidate at a time."""
    text, words = pool[place].candidate.output.text, pool[place].candidate.output.text.split()
    if filters.finished and pool[place].candidate.output.finish_reason != "stop":
        return "finished"
    if filters.repetition is not None and repetition(text) > filters.repetition:
        return "repetition"
    if filters.length is not None and not filters.length[0] <= len(words) <= (filters.length[1] or 10**9):
        return "length"
    if filters.deduplicate:
        for earlier in pool[:place]:
            same = earlier.candidate.output.text.split() == words
            same = same and earlier.candidate.prompt.id == pool[place].candidate.prompt.id
            stands = earlier.candidate.output.finish_reason == "stop" or not filters.finished
            if same and stands and earlier.reward is not None:
                return "deduplicate"
    if filters.regex is not None and not re.search(filters.regex, text):
        return "regex"
    return "without" if filters.without is not None and re.search(filters.without, text) else None


@given(pools, some_filters)
def test_sifting_equals_brute_force(pool: Pool, filters: Filters) -> None:
    fell = [first_failed(pool, place, filters) for place in range(len(pool))]
    left, fallen = filters.sift(pool)
    assert left == [scored for scored, name in zip(pool, fell, strict=True) if name is None]
    active = {name for name in Filters.__dataclass_fields__ if getattr(filters, name) not in (None, False)}
    active |= {"repetition"} if filters.repetition is not None else set()
    assert fallen == {name: fell.count(name) for name in fallen}
    assert set(fallen) == active


@given(pools, some_filters, st.sampled_from([Best(), Best(2), Top(0.3), Random(), Floor(Best(), 1.0)]))
def test_a_rule_sees_what_is_left_and_nothing_else(pool: Pool, filters: Filters, rule: Any) -> None:
    left, _ = filters.sift(pool)
    wanted = rule(left, (3,))
    if wanted:
        assert choose(Filtered(rule, filters), pool, (3,)) == wanted
    else:
        with pytest.raises(NothingChosen):
            choose(Filtered(rule, filters), pool, (3,))


def test_what_is_kept_and_what_falls() -> None:
    pool = [
        one("a", 0, "cut off in the", 9.0, finished=False),
        one("a", 1, "no no no no no", 8.0),
        one("a", 2, "short", 7.0),
        one("a", 3, "a fine  answer\n", 6.0),
        one("a", 4, "a fine answer", 6.5),
        one("a", 5, "a fine answer as an AI", 7.0),
        one("b", 0, "a fine answer", 1.0),
        one("b", 1, "nothing to find", 2.0),
        one("c", 0, "short", 2.0),
    ]
    filters = Filters(True, 0.3, (3, 20), True, r"\bfine\b", "as an AI")
    left, fallen = filters.sift(pool)
    assert keys(left) == [("a", 3), ("b", 0)]
    assert fallen == {"finished": 1, "repetition": 1, "length": 2, "deduplicate": 1, "regex": 1, "without": 1}
    assert keys(Filtered(Best(), filters)(pool)) == [("a", 3), ("b", 0)]
    assert Filters().sift(pool) == (pool, {})


def test_an_unscored_duplicate_takes_nobodys_place() -> None:
    pool = [one("a", 0, "same", None), one("a", 1, "same", 1.0), one("a", 2, "same", 1.0), one("b", 0, "same", 1.0)]
    assert keys(Filters(deduplicate=True).sift(pool)[0]) == [("a", 0), ("a", 1), ("b", 0)]


def test_when_all_fall_the_message_says_to_what() -> None:
    pool = [one("a", 0, "x", 1.0, finished=False), one("a", 1, "y", 1.0), one("b", 0, "yes", None)]
    with pytest.raises(NothingChosen, match=r"took 2 of 3 candidates \(finished 1, regex 1\).*\(1 without a reward\)"):
        choose(Filtered(Best(), Filters(finished=True, regex="yes")), pool)


def test_a_pattern_that_backtracks_is_given_up() -> None:
    """What it is not done with falls, whether it was wanted or not."""
    pool = [one("a", 0, "a" * 60 + "b", 1.0), one("a", 1, "aaa", 1.0), one("a", 2, "c" * 1_000_000, 1.0)]
    start = time.process_time()
    assert keys(Filters(regex=r"^(a|aa)+$").sift(pool)[0]) == [("a", 1)]
    assert keys(Filters(without=r"^(a|aa)+$").sift(pool)[0]) == [("a", 2)]
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"repetition": 1.5}, "repetition"),
        ({"length": (5, 2)}, "length"),
        ({"length": (-1, None)}, "length"),
        ({"regex": "("}, r"select\.filters\.regex: '\(' is not a pattern"),
        ({"without": "["}, r"select\.filters\.without"),
    ],
)
def test_wrong_filters_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Filters(**wrong)


def test_filters_are_of_texts(tmp_path: Path) -> None:
    picture = Scored(Candidate(Prompt("p", "Q"), 0, Picture("0", 1, 1)), 1.0)
    with pytest.raises(UserError, match="are for texts"):
        Filters(finished=True).sift([picture])
    (tmp_path / "r.yaml").write_text("modality: image\nmodel: m\nprompts: p\nreward: r\nselect: {filters: {}}\n")
    with pytest.raises(UserError, match=r"select\.filters: is a key of modality text"):
        load(tmp_path / "r.yaml")


def test_filters_in_a_recipe(tmp_path: Path) -> None:
    base = "model: m\nprompts: p\nreward: vader\n"
    (tmp_path / "r.yaml").write_text(base + "select: {floor: 1, filters: {finished: true, length: [5, null]}}\n")
    assert select(load(tmp_path / "r.yaml").select) == Filtered(
        Floor(Best(), 1.0), Filters(finished=True, length=(5, None))
    )
    (tmp_path / "r.yaml").write_text(base)
    assert select(load(tmp_path / "r.yaml").select) == Best()
    for wrong, said in [
        ("{finised: true}", "did you mean 'finished'"),
        ("{repetition: 2}", r"select\.filters\.repetition: should be less"),
        ("{length: 5}", r"select\.filters\.length"),
        ("{length: [9, 5]}", r"select\.filters\.length"),
    ]:
        (tmp_path / "r.yaml").write_text(base + f"select: {{filters: {wrong}}}\n")
        with pytest.raises(UserError, match=said):
            select(load(tmp_path / "r.yaml").select)


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_select_on_the_command_line(tmp_path: Path) -> None:
    pool = [
        one("a", 0, "cut off", 9.0, finished=False),
        one("a", 1, "no no no no", 8.0),
        one("a", 2, "one two three four five", 8.0),
        one("a", 3, "as an AI", 7.0),
        one("a", 4, "well then", 1.0),
        one("a", 5, "well  then", 2.0),
    ]
    table.write_scored(tmp_path / "s.parquet", pool, CODEC)

    def chosen(*options: object) -> list[int]:
        found = call("select", "--scored", tmp_path / "s.parquet", "--out", tmp_path / "c.parquet", *options)
        assert found.exit_code == 0, found.output
        return [scored.candidate.index for scored in table.read_scored(tmp_path / "c.parquet", CODEC)]

    assert chosen() == [0]
    assert chosen("--finished") == [1]
    assert chosen("--finished", "--max-repetition", 0) == [2]
    assert chosen("--min-length", 3, "--max-repetition", 0.2) == [2]
    assert chosen("--finished", "--max-repetition", 0, "--max-length", 3, "--without", "AI") == [5]
    assert chosen("--finished", "--regex", "well", "--deduplicate") == [4]
    none = call("select", "--scored", tmp_path / "s.parquet", "--out", tmp_path / "c.parquet", "--regex", "zzz")
    assert none.exit_code == 2
    assert "the filters took 6 of 6 candidates (regex 6)" in " ".join(none.output.split())


def test_a_run_counts_what_its_filters_took_and_never_learns_from_it(tmp_path: Path, tiny: Path) -> None:
    rows = [{"id": f"p{i}", "prompt": f"The film number {i}"} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text("def long(completions):\n    return [float(len(c) % 2) for c in completions]\n")
    recipe = {
        "model": str(tiny),
        "prompts": {"path": "prompts.jsonl", "heldout": 3},
        "reward": "mine.py:long",
        "sample": {"prompts_per_round": 6, "k": 4, "max_new_tokens": 12},
        "select": {"filters": {"without": "[a-mA-F]", "length": [1, 2], "deduplicate": True}},
        "tune": {"batch_size": 4},
        "rounds": 2,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = call("run", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    taken = emptied = untied = 0
    for row in metrics[1:]:
        folder = tmp_path / "run" / "rounds" / f"{row['round']:04d}"
        pool, chosen = (table.read_scored(folder / f"{name}.parquet", CODEC) for name in ("scored", "chosen"))
        filters = Filters(length=(1, 2), deduplicate=True, without="[a-mA-F]")
        names = [first_failed(pool, place, filters) for place in range(len(pool))]
        for name in ("length", "deduplicate", "without"):
            assert row[f"select/filtered/{name}"] == names.count(name)
        assert "select/filtered/finished" not in row
        left = [scored for scored, name in zip(pool, names, strict=True) if name is None]
        prompts = {scored.candidate.prompt.id for scored in left}
        assert row["select/filtered_prompts"] == 6 - len(prompts)
        of_each = [[s.reward for s in left if s.candidate.prompt.id == prompt] for prompt in prompts]
        assert row["select/tied_prompts"] == sum(len(r) > 1 and len(set(r)) == 1 for r in of_each)
        assert len(chosen) == len(prompts)
        assert set(keys(chosen)) <= set(keys(left))
        assert all(scored.reward is not None for scored in pool)
        taken += len(pool) - len(left)
        emptied += 6 - len(prompts)
        before = [[s.reward for s in pool if s.candidate.prompt.id == f"p{i}"] for i in range(12)]
        untied += row["select/tied_prompts"] != sum(len(r) > 1 and len(set(r)) == 1 for r in before)
    assert len(metrics) == 3
    assert 0 < taken < 48
    assert emptied and untied  # or this test would see less than it says
    assert "select/filtered/length" not in metrics[0]
