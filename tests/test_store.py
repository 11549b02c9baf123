"""The run directory, the table, and the loop on parts that count what they are asked to do."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftune import files, table
from raftune.errors import UserError
from raftune.loop import raft
from raftune.prompts import draw
from raftune.rank import Best, Random
from raftune.score import Rewards, Weighted
from raftune.store import RoundFolder, Run
from raftune.types import Candidate, Prompt, Round, Scored, Text

PROMPTS = [Prompt(f"p{i}", f"text {i}", {"n": i}) for i in range(10)]
CODEC = table.TextCodec()


class Counter:
    """Sampler, reward and learner in one: what they make depends on their input alone, and every call is noted."""

    name = "length"

    def __init__(self, fail_at: str = "") -> None:
        self.calls: list[str] = []
        self.fail_at = fail_at

    def note(self, call: str) -> None:
        if call == self.fail_at:
            raise ConnectionError(call)
        self.calls.append(call)

    def sample(self, policy: Any, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        self.note(f"sample {Path(policy).parent.name} {' '.join(p.id for p in prompts)}")
        return [
            Candidate(p, i, Text("x" * (hash_of(p.id, i, *seed) % 7), (1,), (-0.5,))) for p in prompts for i in range(k)
        ]

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        self.note(f"score {len(candidates)}")
        return [float(len(c.output.text)) for c in candidates]

    def tune(self, policy: Any, chosen: Sequence[Scored], out: Path, seed: tuple[object, ...]) -> Path:
        self.note(f"tune {len(chosen)}")
        with files.replacing_folder(out) as part:
            files.write_json(part / files.FIGURES, {"loss": 1.5})
        return out


def hash_of(*address: object) -> int:
    from raftune.types import seed_of

    return seed_of(*address)


def start(run: Run, parts: Counter, rounds: int = 2, select: Any = Best()) -> list[Round]:
    loop = raft(
        run,
        lambda number: draw(PROMPTS, number, 5, 0),
        parts,
        Rewards((Weighted(parts),)),
        parts,
        k=3,
        rounds=rounds,
        select=select,
        shard=2,
    )
    return list(loop)


def contents(root: Path) -> dict[str, Any]:
    """Everything but times and memory."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*.parquet")):
        found[str(path.relative_to(root))] = path.read_bytes()
    return found


def test_the_run_directory_is_as_documented(tmp_path: Path) -> None:
    with Run(tmp_path / "run", "model") as run:
        rounds = start(run, Counter())
    here = tmp_path / "run" / "rounds" / "0002"
    assert {entry.name for entry in here.iterdir()} == {
        *("prompts.parquet", "candidates", "scored.parquet", "chosen.parquet", "policy", "metrics.json", "DONE"),
        "times.json",
    }
    assert [p.name for p in sorted((here / "candidates").iterdir())] == [f"0000{i}.parquet" for i in range(3)]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2]
    scored, chosen = (table.read_scored(here / f"{name}.parquet", CODEC) for name in ("scored", "chosen"))
    assert rows[1]["sample/reward_mean"] == pytest.approx(sum(s.reward for s in scored) / 15)
    assert rows[1]["chosen/reward_mean"] == pytest.approx(sum(s.reward for s in chosen) / 5)
    assert rows[1]["tune/loss"] == 1.5
    assert {"time/sample_s", "time/score_s", "time/tune_s", "time/round_s", "memory/peak_bytes"} <= rows[1].keys()
    assert rounds[1].reward_mean == rows[1]["sample/reward_mean"]
    assert [c.candidate.prompt.columns["n"] for c in scored] == [int(c.candidate.prompt.id[1:]) for c in scored]


def test_a_second_session_does_nothing_twice(tmp_path: Path) -> None:
    with Run(tmp_path / "a", "model") as run:
        start(run, Counter())
    whole = Counter()
    with Run(tmp_path / "b", "model") as run:
        start(run, whole)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    again = Counter()
    with Run(tmp_path / "b", "model") as run:
        assert start(run, again) == []
        assert again.calls == []
        assert [r.number for r in start(run, again, rounds=3)] == [3]


def calls_of_a_whole_run(tmp_path: Path) -> list[str]:
    parts = Counter()
    with Run(tmp_path / "whole", "model") as run:
        start(run, parts)
    return parts.calls


def test_whatever_fails_the_rest_is_done_once(tmp_path: Path) -> None:
    """Fail at each call in turn; the resumed run does exactly the calls that are left."""
    whole = calls_of_a_whole_run(tmp_path)
    assert len(whole) == 2 * (3 + 3 + 1)
    for place in range(len(whole)):
        parts = Counter()
        seen = 0

        def note(call: str, parts: Counter = parts, stop: int = place) -> None:
            nonlocal seen
            if seen == stop:
                raise KeyboardInterrupt
            seen += 1
            parts.calls.append(call)

        parts.note = note  # type: ignore[method-assign]
        root = tmp_path / f"run{place}"
        with Run(root, "model") as run, pytest.raises(KeyboardInterrupt):
            start(run, parts)
        rest = Counter()
        with Run(root, "model") as run:
            start(run, rest)
        assert parts.calls + rest.calls == whole
        assert contents(root) == contents(tmp_path / "whole")


def test_a_failing_reward_keeps_the_candidates(tmp_path: Path) -> None:
    with (
        Run(tmp_path / "run", "model") as run,
        pytest.raises(UserError, match="reward 'length' raised ConnectionError"),
    ):
        start(run, Counter(fail_at="score 6"))
    kept = sorted((tmp_path / "run" / "rounds" / "0001" / "candidates").iterdir())
    assert [len(table.read_candidates(path, CODEC)) for path in kept] == [6, 6, 3]


def test_nothing_chosen_stops_before_tuning(tmp_path: Path) -> None:
    from raftune.rank import Above

    parts = Counter()
    with Run(tmp_path / "run", "model") as run, pytest.raises(UserError, match="chose none of 15"):
        start(run, parts, select=Above(100))
    assert not any(call.startswith("tune") for call in parts.calls)
    assert (tmp_path / "run" / "rounds" / "0001" / "scored.parquet").exists()


def test_the_control_chooses_as_many(tmp_path: Path) -> None:
    with Run(tmp_path / "a", "model") as run:
        best = start(run, Counter(), rounds=1)[0]
    with Run(tmp_path / "b", "model") as run:
        control = start(run, Counter(), rounds=1, select=Random())[0]
    assert len(best.chosen) == len(control.chosen) == 5
    assert best.chosen_reward_mean > control.chosen_reward_mean


class Pupil(Counter):
    """A learner that notes what it learned from."""

    def __init__(self, fail_at: str = "") -> None:
        super().__init__(fail_at)
        self.lessons: list[list[tuple[str, str, int]]] = []

    def tune(self, policy: Any, chosen: Sequence[Scored], out: Path, seed: tuple[object, ...]) -> Path:
        self.note(f"tune round {seed[1]}")
        self.lessons.append([(one.candidate.output.text, *table.key_of(one)) for one in chosen])
        return super().tune(policy, chosen, out, seed)


@pytest.mark.parametrize("buffer", [0, 1, 2, 9])
def test_the_buffer_brings_earlier_winners_back(buffer: int, tmp_path: Path) -> None:
    """Round n learns from what rounds n - buffer to n chose, the earliest first; a resumed run from the same."""

    def lessons(folder: Path, parts: Pupil) -> list[list[tuple[str, str, int]]]:
        rewards, draws = Rewards((Weighted(parts),)), lambda number: draw(PROMPTS, number, 5, 0)
        with Run(folder, "model") as run:
            list(raft(run, draws, parts, rewards, parts, k=3, rounds=4, shard=2, buffer=buffer))
        return parts.lessons

    found = lessons(tmp_path / "whole", Pupil())
    tables = [tmp_path / "whole" / "rounds" / f"{number:04d}" / "chosen.parquet" for number in range(1, 5)]
    winners = [
        [(one.candidate.output.text, *table.key_of(one)) for one in table.read_scored(path, CODEC)] for path in tables
    ]
    wanted = []
    for last in range(4):
        wanted.append([one for number in range(4) if last - buffer <= number <= last for one in winners[number]])
    assert found == wanted
    assert [len(lesson) for lesson in found] == [5 * min(number, buffer + 1) for number in range(1, 5)]
    parts = Pupil("tune round 3")
    with pytest.raises(ConnectionError):
        lessons(tmp_path / "resumed", parts)
    parts.fail_at = ""
    assert lessons(tmp_path / "resumed", parts) == wanted


def test_another_recipe_is_refused_by_key(tmp_path: Path) -> None:
    Run(tmp_path / "run", "model", settings={"sample.k": 8, "seed": 0}).close()
    with pytest.raises(UserError, match=r"another recipe: sample.k \(8 → 16\), seed \(0 → None\)"):
        Run(tmp_path / "run", "model", settings={"sample.k": 16})
    with pytest.raises(UserError, match=r"model \('model' → 'other'\)"):
        Run(tmp_path / "run", "other", settings={"sample.k": 8, "seed": 0})
    Run(tmp_path / "run", "model", settings={"sample.k": 8, "seed": 0}).close()


def test_the_loop_settles_what_it_was_started_with(tmp_path: Path) -> None:
    with Run(tmp_path / "run", "model") as run:
        start(run, Counter(), rounds=1)
    with Run(tmp_path / "run", "model") as run, pytest.raises(UserError, match=r"loop.select \('Best"):
        start(run, Counter(), select=Random())
    with Run(tmp_path / "run", "model") as run:
        assert [r.number for r in start(run, Counter())] == [2]


def test_a_rule_of_ones_own_resumes(tmp_path: Path) -> None:
    """Its repr holds an address, which is another one in the next session."""

    def session() -> Any:
        def first_of_each(scored: Sequence[Scored], seed: tuple[object, ...]) -> list[Scored]:
            return [one for one in scored if one.candidate.index == 0]

        return first_of_each

    for rounds in (1, 2):
        with Run(tmp_path / "run", "model") as run:
            assert [r.number for r in start(run, Counter(), rounds, select=session())] == [rounds]


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds 'thesis.tex' and no run"):
        Run(tmp_path, "model")
    with pytest.raises(UserError, match="not a directory"):
        Run(tmp_path / "thesis.tex", "model")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Run(tmp_path / "run", "model"), pytest.raises(UserError, match="another process is running"):
        Run(tmp_path / "run", "model")
    Run(tmp_path / "run", "model").close()


def test_the_best_and_the_last_are_kept_and_no_candidate_is_lost(tmp_path: Path) -> None:
    with Run(tmp_path / "run", "model") as run:
        start(run, Counter(), rounds=4)
        for number, reward in enumerate([0.1, 0.5, 0.9, 0.9, 0.2]):
            run.log(number, {"heldout/reward_mean": reward, "heldout/perplexity": None})
        assert run.best() == 2
        run.prune({run.best(), run.last})
    rounds = tmp_path / "run" / "rounds"
    assert [(rounds / f"000{n}" / "policy").exists() for n in range(1, 5)] == [False, True, False, True]
    assert len(list(rounds.glob("*/candidates/*.parquet"))) == 12
    assert (tmp_path / "run" / "best").resolve() == (rounds / "0002" / "policy").resolve()
    assert "heldout/perplexity" not in run.metrics(1)


def test_half_written_files_vanish(tmp_path: Path) -> None:
    with Run(tmp_path / "run", "model") as run:
        start(run, Counter(), rounds=1)
    (tmp_path / "run" / "rounds" / ".policy.123.part").mkdir()
    (tmp_path / "run" / "rounds" / "0001" / ".scored.parquet.9.part").touch()
    Run(tmp_path / "run", "model").close()
    assert list((tmp_path / "run").rglob("*.part")) == []


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")
    with pytest.raises(OSError, match="full"), files.replacing(tmp_path / "a") as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "full")
    assert (tmp_path / "a").read_text() == "before"
    with pytest.raises(OSError, match="full"), files.replacing_folder(tmp_path / "b") as part:
        (part / "x").touch()
        raise OSError(errno.ENOSPC, "full")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


texts = st.text(max_size=20)
outputs = st.builds(
    Text,
    texts,
    st.one_of(st.none(), st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)),
    st.one_of(st.none(), st.lists(st.floats(-100, 0, width=32), max_size=5).map(tuple)),
    st.sampled_from(["stop", "length"]),
)
contents_of_prompts = st.one_of(
    texts, st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), min_size=1, max_size=3).map(tuple)
)
columns = st.dictionaries(texts, st.one_of(st.none(), st.integers(), texts, st.lists(st.booleans())), max_size=3)


@given(
    st.lists(st.tuples(contents_of_prompts, columns, outputs, st.one_of(st.none(), st.floats(-1e9, 1e9))), max_size=5)
)
def test_rows_come_back_as_they_went(rows: list[Any]) -> None:
    import tempfile

    scored = [
        Scored(Candidate(Prompt(f"p{i}", content, column), i, output, "policy", reward), reward, {"r": reward})
        for i, (content, column, output, reward) in enumerate(rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.parquet"
        table.write_scored(path, scored, CODEC)
        back = table.read_scored(path, CODEC)
    assert [(s.candidate, s.reward) for s in back] == [(s.candidate, s.reward) for s in scored]


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    table.write_prompts(tmp_path / "p.parquet", PROMPTS)
    with pytest.raises(UserError, match=r"p.parquet: no column 'index'; it has prompt_id, prompt"):
        table.read_candidates(tmp_path / "p.parquet", CODEC)
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(UserError, match="not a parquet file"):
        table.read_candidates(tmp_path / "x.parquet", CODEC)
    with pytest.raises(UserError, match="no such file"):
        table.read_candidates(tmp_path / "absent.parquet", CODEC)


def test_each_stage_has_its_own_peak(tmp_path: Path) -> None:
    """A stage that holds 300 MB says so, as does the one around it; the next does not, and the whole never falls."""
    import mmap

    from raftune import memory

    if not os.access(memory.RESTART, os.W_OK):
        pytest.skip("only Linux counts a process's peak anew")
    here = RoundFolder(tmp_path, CODEC)
    with here.timed("evaluate"):
        with here.timed("sample"), mmap.mmap(-1, 300_000_000) as held:  # the allocator would keep what is freed
            for page in range(0, len(held), 4096):
                held[page] = 1
        with here.timed("score"):
            pass
    whole = memory.peak()
    with here.timed("tune"):
        pass
    figures = here.figures
    for stage in ("score", "tune"):
        assert figures["memory/sample_bytes"] - figures[f"memory/{stage}_bytes"] > 250_000_000
    assert memory.peak() >= whole >= figures["memory/evaluate_bytes"] >= figures["memory/sample_bytes"]
