"""Prompts in, the split, the draw, and what happens to rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftune import build
from raftune.errors import UserError
from raftune.prompts import draw, parse, read_rows, split, tidy, without
from raftune.types import Prompt


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def many(count: int) -> list[Prompt]:
    return [Prompt(str(i), f"prompt {i}") for i in range(count)]


def test_jsonl_and_parquet_read_alike(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "Hi", "answer": 3}, {"id": "b", "prompt": "Ho", "answer": 4}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    from_json = parse(read_rows(write(tmp_path / "p.jsonl", rows)))
    assert from_json == parse(read_rows(str(tmp_path / "p.parquet")))
    assert from_json[1] == Prompt("b", "Ho", {"answer": 4})


def test_a_dataset_loads(tmp_path: Path) -> None:
    """A folder that `datasets` reads, as a Hub id would be."""
    write(tmp_path / "train.jsonl", [{"prompt": "Hi", "x": 1}])
    with pytest.raises(UserError, match="no such file"):
        read_rows(str(tmp_path / "absent.jsonl"))
    with pytest.raises(UserError, match="neither a file nor a dataset"):
        read_rows("nobody/no-such-dataset-at-all")


def test_ids_without_a_column_are_stable(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi"}, {"prompt": "Ho"}]
    forward, backward = parse([("", r) for r in rows]), parse([("", r) for r in rows[::-1]])
    assert [p.id for p in forward] == [p.id for p in backward][::-1]
    assert forward[0].id != forward[1].id


def test_messages_and_other_columns(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    prompt = parse(read_rows(write(tmp_path / "p.jsonl", [{"prompt": chat, "topic": "x"}])))[0]
    assert prompt.is_chat
    assert prompt.content == tuple(chat)
    assert prompt.columns == {"topic": "x"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"prompt": "a"}', "{oops"], "line 2: not JSON"),
        (['{"prompt": "a"}', "", "[1]"], "line 3: a JSON object"),
        (['{"text": "a"}'], "line 1: no column 'prompt'; it has text"),
        (['{"prompt": 5}'], "line 1: a prompt is a text or a list"),
        (['{"prompt": [{"role": "user"}]}'], "line 1: a prompt is a text or a list"),
        (['{"prompt": [{"role": "user", "content": null}]}'], "line 1: a message's content is a text"),
        (['{"prompt": "\\ud800"}'], "line 1: half a surrogate"),
    ],
)
def test_bad_rows_are_named(lines: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        parse(read_rows(write(tmp_path / "p.jsonl", lines)))


def test_other_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}')
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        read_rows(str(tmp_path / "p.jsonl"))


def test_text_parts_and_odd_columns_become_what_comes_back_from_disk() -> None:
    import datetime

    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]}]
    prompt = parse([("", {"prompt": parts, "when": datetime.date(2026, 1, 2), "n": [1]})])[0]
    assert prompt.content == ({"role": "user", "content": "Hi there"},)
    assert prompt.columns == {"when": "2026-01-02", "n": [1]}


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a parquet file"):
        read_rows(write(tmp_path / "p.parquet", ["hello"]))


def test_unusable_rows_are_counted_and_nothing_is_cut() -> None:
    rows = [Prompt("a", "x" * 5), Prompt("a", "other"), Prompt("b", " "), Prompt("c", "x" * 11), Prompt("d", "x" * 10)]
    chat = Prompt("e", ({"role": "user", "content": "  "},))
    kept, counts = tidy([*rows, chat], length=lambda p: len(p.content), limit=10)
    assert kept == [rows[0], rows[4]]
    assert counts == {"rows": 6, "duplicate": 1, "empty": 2, "too_long": 1}


def test_the_split_is_by_id_and_seed() -> None:
    prompts = many(50)
    train, held = split(prompts, 10, seed=1)
    assert (len(train), len(held)) == (40, 10)
    assert {p.id for p in train}.isdisjoint(p.id for p in held)
    assert {p.id for p in split(prompts[::-1], 10, seed=1)[1]} == {p.id for p in held}
    assert {p.id for p in split(prompts, 10, seed=2)[1]} != {p.id for p in held}
    assert len(split(prompts, 0.1, seed=1)[1]) == 5
    assert len(split(prompts[:3], 0.1, seed=1)[1]) == 1
    # One prompt more does not move the others across the line, but for the one it displaces
    assert len({p.id for p in held} - {p.id for p in split([*prompts, Prompt("new", "n")], 10, seed=1)[1]}) <= 1
    with pytest.raises(UserError, match="leave none"):
        split(prompts, 50, seed=1)


def test_held_out_prompts_never_train_even_under_another_id() -> None:
    held = [Prompt("h", "same text"), Prompt("x", "other")]
    train = [Prompt("a", "same text"), Prompt("x", "id is held out"), Prompt("b", "fine")]
    assert without(train, held) == [train[2]]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3))
def test_every_prompt_is_drawn_before_any_comes_again(total: int, count: int, seed: int) -> None:
    if count > total:
        return
    prompts = many(total)
    drawn = [draw(prompts, number, count, seed) for number in range(1, 9)]
    for once in drawn:
        assert len({p.id for p in once}) == count
    flat = [p.id for once in drawn for p in once]
    for end in range(0, len(flat) + 1, count):  # nobody falls behind by more than a pass and the one begun
        counts = [flat[:end].count(p.id) for p in prompts]
        assert max(counts) - min(counts) <= 2
    whole_passes = flat[: total // count * count]
    assert len(set(whole_passes)) == len(whole_passes)


def test_the_draw_is_seeded_and_reshuffled() -> None:
    prompts = many(8)
    one, two = draw(prompts, 1, 8, seed=0), draw(prompts, 2, 8, seed=0)
    assert one == draw(prompts, 1, 8, seed=0)
    assert one != two
    assert one != draw(prompts, 1, 8, seed=1)
    with pytest.raises(UserError, match="prompts_per_round"):
        draw(prompts, 1, 9, seed=0)


def recipe_of(folder: Path, **prompts: Any) -> Any:
    from raftune.recipe import parse as parse_recipe

    write(folder / "p.jsonl", [{"id": f"p{i}", "prompt": f"prompt {i}"} for i in range(6)])
    write(folder / "h.jsonl", [{"id": "h0", "prompt": "prompt 1"}, {"id": "p5", "prompt": "other"}])
    raw = {"model": "m", "reward": "vader", "prompts": {"path": "p.jsonl", **prompts}}
    return parse_recipe({**raw, "sample": {"prompts_per_round": 1}})


def test_what_is_held_out_trains_only_where_that_is_asked_for(tmp_path: Path) -> None:
    """By text and by id; the count says how many went."""
    apart = build.prompts(recipe_of(tmp_path, heldout="h.jsonl"), None, tmp_path)
    assert [p.id for p in apart.train] == ["p0", "p2", "p3", "p4"]
    assert apart.counts["also_heldout"] == 2
    shared = build.prompts(recipe_of(tmp_path, heldout="p.jsonl", disjoint=False), None, tmp_path)
    assert [p.id for p in shared.train] == [p.id for p in shared.heldout] == [f"p{i}" for i in range(6)]
    assert shared.counts["also_heldout"] == 0
    with pytest.raises(UserError, match="is more than the 0 prompts"):
        build.prompts(recipe_of(tmp_path, heldout="p.jsonl"), None, tmp_path)
