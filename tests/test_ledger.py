"""Bookkeeping on columns: the same choices and figures as rules on lists make, in a stream, and resumed anywhere."""

from __future__ import annotations

import math
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raftune import columns, ledger, stored, table
from raftune.errors import UserError
from raftune.evaluate import text
from raftune.figures import part_means, selection
from raftune.filters import Filtered, Filters
from raftune.ledger import Candidates, Ledger, ScoredTable
from raftune.picture import PictureCodec
from raftune.provenance import by_source
from raftune.rank import Above, Best, Floor, Random, Top, choose, rank
from raftune.score import Rewards, Weighted
from raftune.types import Candidate, Prompt, Scored, Text, mean_reward, seed_of

CODEC = table.TextCodec()
few = settings(max_examples=40)  # each writes tables
Pool = list[Scored]


def keys(chosen: Sequence[Scored]) -> list[tuple[str, int]]:
    return [table.key_of(one) for one in chosen]


# The rules as they are told, on lists: one candidate at a time


def best(pool: Pool, n: int, skip_tied: bool) -> Pool:
    return [
        one
        for ranking in rank(pool)
        if not (skip_tied and ranking.all_tied)
        for one in sorted(ranking.scored[:n], key=lambda one: one.candidate.index)
    ]


def top(pool: Pool, fraction: float) -> Pool:
    ranked = sorted((one for one in pool if one.reward is not None), key=lambda one: -(one.reward or 0))
    kept = {id(one) for one in ranked[: share(len(ranked), fraction)]}
    return [one for one in pool if id(one) in kept]


def share(count: int, fraction: float) -> int:
    return min(count, max(1, math.floor(count * fraction + 1e-9)))


def sample(pool: Pool, count: int, seed: tuple[object, ...]) -> Pool:
    return random.Random(seed_of("select", *seed)).sample(pool, min(count, len(pool)))


def drawn(pool: Pool, n: int | None, fraction: float | None, seed: tuple[object, ...]) -> Pool:
    eligible = [one for one in pool if one.reward is not None]
    if fraction is not None:
        kept = sample(eligible, share(len(eligible), fraction), seed)
    else:
        groups: dict[str, Pool] = {}
        for one in eligible:
            groups.setdefault(one.candidate.prompt.id, []).append(one)
        kept = [one for name, some in groups.items() for one in sample(some, n or 1, (*seed, name))]
    chosen = {id(one) for one in kept}
    return [one for one in pool if id(one) in chosen]


def by_hand(rule: Any, pool: Pool, seed: tuple[object, ...]) -> Pool:
    match rule:
        case Best():
            return best(pool, rule.n, rule.skip_tied)
        case Top():
            return top(pool, rule.fraction)
        case Above():
            return [one for one in pool if one.reward is not None and one.reward >= rule.floor]
        case Random():
            return drawn(pool, rule.n, rule.fraction, seed)
        case Floor(rule=Best(skip_tied=True)):  # ties are judged among all
            return by_hand(Above(rule.floor), by_hand(rule.rule, pool, seed), seed)
        case Floor():
            return by_hand(rule.rule, by_hand(Above(rule.floor), pool, seed), seed)
        case Filtered():
            most = rule.filters.length[1] if rule.filters.length else None
            left = [one for one in pool if len(one.candidate.output.text.split()) <= (most or 0)]
            return by_hand(rule.rule, left, seed)
    raise AssertionError(rule)


prompts = st.sampled_from("abcde")
values = st.sampled_from([None, -0.0, 0.0, 1.0, 1.0, 2.0]) | st.floats(-10, 10)
rows = st.tuples(
    prompts, values, values, st.sampled_from(["", "a", "a b", "a b c"]), st.sampled_from(["policy", "ann"])
)


def pool_of(some: list[Any]) -> Pool:
    counts: dict[str, int] = {}
    pool = []
    for prompt, reward, part, words, source in some:
        counts[prompt] = index = counts.get(prompt, -1) + 1
        output = Text(words, tuple(range(index)), tuple(-1.0 for _ in range(index)), "stop" if index % 2 else "length")
        one = Candidate(Prompt(prompt, f"text of {prompt}", {"n": 1}), index, output, source, -1.0)
        pool.append(Scored(one, reward, {"r": reward, "s": part}))
    return pool


pools = st.lists(rows, min_size=1, max_size=30).map(pool_of)
adjacent = st.lists(rows, min_size=1, max_size=30).map(lambda some: pool_of(sorted(some, key=lambda row: row[0])))
simple = st.one_of(
    st.builds(Best, st.integers(1, 4), st.booleans()),
    st.builds(Top, st.floats(0.01, 1)),
    st.builds(Above, st.sampled_from([0.0, 1.0, 1.5])),
    st.builds(Random, st.integers(1, 3)),
    st.builds(Random, st.none(), st.floats(0.01, 1)),
)
floored = st.one_of(simple, st.builds(Floor, simple, st.sampled_from([0.0, 1.0])))
rules = st.one_of(
    floored, st.builds(Filtered, floored, st.builds(Filters, length=st.tuples(st.just(0), st.integers(1, 3))))
)


@given(st.one_of(pools, adjacent), floored, st.integers(0, 5))
def test_rules_choose_from_lists_as_they_are_told(pool: Pool, rule: Any, seed: int) -> None:
    assert rule(pool, (seed,)) == by_hand(rule, pool, (seed,))


def test_ties_at_the_edge_of_a_fraction_go_to_the_first() -> None:
    pool = pool_of([("a", 1.0, None, "", ""), ("b", 2.0, None, "", ""), *(("c", 1.0, None, "", "") for _ in range(4))])
    assert keys(Top(0.5)(pool)) == [("a", 0), ("b", 0), ("c", 0)]


def on_disk(pool: Pool, folder: Path, shard: int = 7) -> ScoredTable:
    """The pool in tables of some rows each."""
    paths = []
    for start in range(0, len(pool), shard):
        paths.append(folder / f"{start:05d}.parquet")
        table.write_scored(paths[-1], pool[start : start + shard], CODEC)
    return ScoredTable(paths, CODEC)


@few
@given(st.one_of(pools, adjacent), rules, st.integers(0, 5), st.integers(1, 9))
@example(
    pool_of([("a", None, None, "", "policy"), ("b", 1.0, None, "", "policy"), ("a", 1.0, None, "", "policy")]),
    Floor(Best(), 0),
    0,
    1,
)
def test_rules_choose_the_same_on_columns_as_one_by_one(pool: Pool, rule: Any, seed: int, block: int) -> None:
    """Lists and tables, prompts whole or scattered, ranked at once or some prompts at a time."""
    wanted = by_hand(rule, pool, (seed, 1))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BLOCK", block)
        patch.setattr(stored, "BATCH", 3)
        whole = on_disk(pool, Path(folder))
        kept = Ledger(whole.candidates, whole.columns)
        for scored in (pool, whole, kept):
            if not wanted:
                with pytest.raises(UserError, match="chose none"):
                    choose(rule, scored, (seed, 1))
                continue
            chosen = choose(rule, scored, (seed, 1))
            assert keys(chosen) == keys(wanted)
            assert list(chosen) == wanted  # decoded again: outputs, rewards, parts
        if wanted:
            chosen = choose(rule, kept, (seed, 1))
            marked = [key in set(keys(wanted)) for key in keys(pool)]
            assert kept.which(chosen).tolist() == kept.which(wanted).tolist() == marked


@few
@given(pools, floored)
def test_figures_are_those_of_lists(pool: Pool, rule: Any) -> None:
    """On disk, as a list, and as they are told."""
    rankings = rank(pool)
    wanted = {
        "tied_prompts": sum(ranking.all_tied for ranking in rankings),
        "unscored_prompts": sum(not ranking.scored for ranking in rankings),
    }
    means = {}
    for name in ("r", "s"):
        told = [value for one in pool if (value := one.parts[name]) is not None]
        if told:
            means[f"reward/{name}"] = sum(told) / len(told)
    with tempfile.TemporaryDirectory() as folder:
        whole = on_disk(pool, Path(folder))
        for scored in (pool, whole, Ledger(whole.candidates, whole.columns)):
            assert selection(scored, rule) == wanted
            assert part_means(scored) == means
            assert columns.columns_of(scored).mean_reward == mean_reward(pool)
        assert by_source(whole, whole.take(np.arange(len(pool))[::2])) == by_source(pool, pool[::2])
        outputs = [one.candidate for one in pool]
        assert text.describe(whole.candidates, 2.0) == text.describe(outputs, 2.0)


@few
@given(pools, st.lists(st.integers(0, 29), max_size=20), st.integers(1, 9))
def test_any_rows_in_any_order(pool: Pool, picked: list[int], batch: int) -> None:
    rows = [row % len(pool) for row in picked]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "BATCH", batch)
        whole = on_disk(pool, Path(folder))
        assert list(whole) == pool
        assert whole[-1] == pool[-1]
        assert whole[2:5] == pool[2:5]
        some = whole.take(np.array(rows, np.int64))
        assert list(some) == [pool[row] for row in rows]
        assert list(some.take(np.arange(len(rows))[::-1])) == [pool[row] for row in rows][::-1]
        with pytest.raises(IndexError):
            whole[len(pool)]


@few
@given(pools, st.lists(st.booleans(), min_size=30, max_size=30), st.integers(1, 40))
def test_a_table_written_in_a_stream_is_the_one_written_at_once(pool: Pool, marks: list[bool], group: int) -> None:
    """The same rows whatever they were read from, and the same bytes."""
    marked = {key for key, mark in zip(keys(pool), marks, strict=False) if mark}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "GROUP", group)
        folder = Path(name)
        found = []
        for shard in (7, 11):
            whole = on_disk(pool, folder / str(shard), shard)
            ledger.write(folder / "a", whole, np.array([key in marked for key in keys(pool)]))
            found.append((folder / "a").read_bytes())
        table.write_scored(folder / "b", pool, CODEC, marked)
        assert pq.read_table(folder / "a").equals(pq.read_table(folder / "b"))
        assert found[0] == found[1]
        assert list(ScoredTable([folder / "a"], CODEC)) == pool


def test_tables_of_others_are_read_and_written_as_ours(tmp_path: Path) -> None:
    """Columns that may be absent, other types of numbers, an infinite reward."""
    import pyarrow as pa

    own = {"prompt_id": ["a", "a"], "prompt": ["x", "x"], "index": [0, 1], "output": ["yes", "no"]}
    pq.write_table(pa.table({**own, "reward": pa.array([1, None], pa.int64())}), tmp_path / "s.parquet")
    whole = ScoredTable([tmp_path / "s.parquet"], CODEC)
    assert [one.reward for one in whole] == [1.0, None]
    assert text.describe(whole.candidates)["finished"] == 1.0
    assert whole.sources[1] == ["policy"]
    assert "length_mean" not in text.describe(whole.candidates)
    ledger.write(tmp_path / "t.parquet", whole, None)
    again = table.read_scored(tmp_path / "t.parquet", CODEC)
    assert again == list(whole)
    assert again[0].candidate.source == "policy"
    assert pq.read_table(tmp_path / "t.parquet")["chosen"].null_count == 2
    pq.write_table(pa.table({**own, "reward": [1.0, math.inf]}), tmp_path / "s.parquet")
    for read in (list, columns.columns_of):
        with pytest.raises(UserError, match="candidate 1 of prompt 'a': the reward is inf"):
            read(ScoredTable([tmp_path / "s.parquet"], CODEC))


def test_pictures_keep_their_files_from_folder_to_folder(tmp_path: Path) -> None:
    import PIL.Image

    from raftune.picture import Picture

    codec, prompt = PictureCodec(), Prompt("a", "a")
    drawn = [Candidate(prompt, i, Picture.of(PIL.Image.new("RGB", (8, 8), (i, 0, 0)))) for i in range(3)]
    table.write_candidates(tmp_path / "candidates" / "0.parquet", drawn, codec)
    candidates = Candidates([tmp_path / "candidates" / "0.parquet"], codec)
    reward = columns.Columns(candidates.keys, np.arange(3.0), {})
    ledger.write(tmp_path / "scored.parquet", Ledger(candidates, reward), None)
    again = table.read_scored(tmp_path / "scored.parquet", codec)
    assert [one.candidate.output.png for one in again] == [one.output.png for one in drawn]
    assert pq.read_table(tmp_path / "scored.parquet")["output"][0].as_py().startswith("candidates/pictures/")


def plain_zscore(part: list[float | None]) -> list[float | None]:
    known = [value for value in part if value is not None]
    if not known:
        return part
    mean, deviation = statistics.fmean(known), statistics.pstdev(known)
    flat = deviation <= 1e-12 * max(1.0, abs(mean))
    return [None if value is None else 0.0 if flat else (value - mean) / deviation for value in part]


numbers = st.none() | st.integers(-4, 4).map(float) | st.floats(-1e3, 1e3)


@given(
    st.lists(st.tuples(prompts, numbers, numbers, numbers), min_size=1, max_size=20),
    st.lists(st.tuples(st.floats(-2, 2), st.booleans()), min_size=1, max_size=3),
)
def test_rewards_add_up_as_one_by_one(told: list[Any], members: list[tuple[float, bool]]) -> None:
    """A part that tells nothing of a prompt is left out of its sums; a hole elsewhere leaves no reward."""

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
            raise AssertionError

    weighted = tuple(
        Weighted(Named(f"m{n}"), weight, "zscore" if z else "none") for n, (weight, z) in enumerate(members)
    )
    parts = {f"m{n}": [row[1 + n] for row in told] for n in range(len(members))}
    candidates = [Candidate(Prompt(row[0], row[0]), place, Text("")) for place, row in enumerate(told)]
    terms = [plain_zscore(parts[f"m{n}"]) if z else parts[f"m{n}"] for n, (_, z) in enumerate(members)]
    for row, one in enumerate(Rewards(weighted).combine(candidates, parts)):
        mine = [other for other in range(len(told)) if told[other][0] == told[row][0]]
        asked = [n for n in range(len(members)) if any(parts[f"m{n}"][other] is not None for other in mine)]
        summands = [None if terms[n][row] is None else members[n][0] * terms[n][row] for n in asked]
        if not summands or None in summands:
            assert one.reward is None
        elif any(z for _, z in members):
            assert one.reward == pytest.approx(math.fsum(summands), abs=1e-6)
        else:
            assert one.reward == math.fsum(summands)
        assert dict(one.parts) == {name: part[row] for name, part in parts.items()}


def test_diversity_of_many_is_that_of_whole_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 prompts every fifth, all four of its outputs; lengths and ends are of all."""
    pool = pool_of([(f"p{i // 4:02d}", 1.0, None, f"w{i} x", "policy") for i in range(160)])
    outputs = [one.candidate for one in pool]
    some = [one for one in outputs if int(one.prompt.id[1:]) % 5 == 0]
    monkeypatch.setattr(text, "MOST", 32)
    for found in (text.describe(on_disk(pool, tmp_path).candidates), text.describe(outputs)):
        assert found["unique_1"] == 33  # 32 words of their own and one that all have
        assert {name: found[name] for name in ("length_mean", "finished")} == {
            "length_mean": statistics.fmean(len(one.output.token_ids) for one in outputs),
            "finished": statistics.fmean(one.output.finish_reason == "stop" for one in outputs),
        }
        monkeypatch.setattr(text, "MOST", 1 << 15)
        assert text.describe(some)["unique_1"] == found["unique_1"]
        monkeypatch.setattr(text, "MOST", 32)


HOLDS = """
import sys, tracemalloc
from pathlib import Path
import pyarrow as pa
sys.path.insert(0, {bench!r})
import books
from raftune.store import RoundFolder
from raftune.rank import Best, choose
from raftune import table
tracemalloc.start()
here = RoundFolder(Path({folder!r}) / "rounds" / "0001", table.TextCodec())
candidates = here.candidates(here.prompts(list), 512, list)
scored = here.scored(candidates, books.rewards())
chosen = here.chosen(scored, lambda: choose(Best(), scored, (0, 1)))
assert (len(scored), len(chosen)) == ({rows}, {rows} // 8)
print(pa.default_memory_pool().max_memory() + tracemalloc.get_traced_memory()[1])
"""


def test_a_longer_round_needs_no_more_memory(tmp_path: Path) -> None:
    """Four times the candidates, the same peak: of their outputs, 73 MB more, next to nothing is held."""
    bench = str(Path(__file__).parent.parent / "bench")
    peaks = []
    for rows in (40_000, 160_000):
        folder = str(tmp_path / str(rows))
        options = ["--step", "build", "--rows", str(rows), "--shard", "512", "--folder", folder]
        subprocess.run([sys.executable, f"{bench}/books.py", *options], capture_output=True, check=True)
        code = HOLDS.format(bench=bench, folder=folder, rows=rows)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 40e6, peaks


def test_a_rule_of_ones_own_may_rewrite_what_it_chooses(tmp_path: Path) -> None:
    """What it returns is what is learned from; the table of all says by prompt and index what was chosen."""
    whole = on_disk(pool_of([("a", 1.0, None, "x", "policy"), ("b", 2.0, None, "y", "policy")]), tmp_path)
    other = replace(whole[1], reward=9.0)
    assert Ledger(whole.candidates, whole.columns).which([other]).tolist() == [False, True]
