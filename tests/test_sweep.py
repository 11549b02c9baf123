"""A sweep against the same runs by hand; what is finished does not run again."""

from __future__ import annotations

import io
import json
import math
import signal
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from test_cli import call, process, write_recipe

from raftune import UserError, studies
from raftune.spread import Spread
from raftune.sweep import Cell, Result, Sweep, before, grid, last, read, summary

REWARD = "heldout/reward_mean"


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path) -> Path:
    prompts = [{"id": f"p{i}", "prompt": f"The film number {i}"} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (tmp_path / "my_rewards.py").write_text(
        "def vowels(completions):\n    return [float(sum(c in 'aeiou' for c in text)) for text in completions]\n"
    )
    return write_recipe(
        tmp_path,
        tiny,
        prompts={"path": "prompts.jsonl", "heldout": 4},
        sample={"prompts_per_round": 4, "k": 2, "max_new_tokens": 6},
        rounds=1,
    )


def test_a_grid_is_every_combination_with_every_seed() -> None:
    cells = grid(["sample.k=4,8", "select.rule=best,top:0.1"], [0, 1])
    assert [(cell.values["sample.k"], cell.values["select.rule"], cell.seed) for cell in cells] == [
        (k, rule, seed) for k in ("4", "8") for rule in ("best", "top:0.1") for seed in (0, 1)
    ]
    assert len({(cell.name, cell.seed) for cell in cells}) == 8
    assert [cell.name for cell in grid([], [3])] == ["recipe"]


def test_names_are_folders_and_differ() -> None:
    names = [Cell({"reward": spec}, 0).name for spec in ("a/b.py:f", "a_b.py:f", "x" * 300, "x" * 301, "..")]
    assert len(set(names)) == 5
    assert all("/" not in name and len(name) <= 120 and name not in {".", ".."} for name in names)


@pytest.mark.parametrize(
    ("axes", "said"),
    [(["sample.k"], "KEY=VALUE"), (["sample.k=4", "sample.k=8"], "twice"), (["seed=1,2"], "--seeds"), (["=3"], "KEY")],
)
def test_a_bad_axis_is_named(axes: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        grid(axes, [0])


def result(k: str, seed: int, *rewards: float) -> Result:
    return Result(Cell({"sample.k": k}, seed), [{"round": n, REWARD: value} for n, value in enumerate(rewards)])


def test_the_summary_is_mean_and_deviation_over_seeds() -> None:
    results = [result("4", 0, 0.0, 1.0), result("4", 1, 0.0, 2.0), result("8", 0, 0.0, 5.0)]
    (four, spread), (eight, single) = summary(results, [REWARD, "heldout/kl"])
    assert (four, eight) == ({"sample.k": "4"}, {"sample.k": "8"})
    assert (spread[REWARD].mean, spread[REWARD].deviation) == (mean([1, 2]), stdev([1, 2]))
    assert single[REWARD].mean == 5.0
    assert math.isnan(single[REWARD].deviation)
    assert "heldout/kl" not in spread  # not measured is absent
    assert str(Spread.over([1.0, 2.0])) == "1.5 ± 0.71"
    assert str(Spread.over([1.0])) == "1"


def test_the_start_counts_once_a_seed() -> None:
    """Cells of one seed share their start: 2 × 2 cells are two values, not four."""
    results = [result(k, seed, start, 5.0) for k in ("4", "8") for seed, start in enumerate((1.0, 2.0))]
    found = before(results, REWARD)
    assert found is not None
    assert (found.mean, found.deviation, found.count) == (1.5, stdev([1.0, 2.0]), 2)
    assert math.isnan(before([result("4", 0, 1.0), result("8", 0, 1.0)], REWARD).deviation)  # type: ignore[union-attr]
    assert before(results, "heldout/kl") is None


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_is_as_wide_as_the_terminal_and_breaks_no_word(width: int) -> None:
    figures = [REWARD, *(f"heldout/figure_{n}" for n in range(4))]
    rounds = [{"round": 0, **dict.fromkeys(figures, 0.12345)}]
    results = [Result(Cell({"sample.k": k}, seed), rounds) for k in ("4", "8") for seed in (0, 1)]
    terminal = Console(width=width, record=True, file=io.StringIO())
    terminal.print(studies.table(results, figures, terminal))
    lines = terminal.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert "before tuning" in lines[3]
    assert "reward_mean" in lines[1]
    assert not any("…" in line for line in lines)
    assert any("in table.md" in line for line in lines) == (width < 200)


def test_every_recipe_is_checked_before_anything_runs(recipe: Path, tmp_path: Path) -> None:
    bad = call("sweep", recipe, "--grid", "sample.k=2,0", "--out", tmp_path / "sweep")
    assert bad.exit_code == 2
    assert "sample.k" in bad.output
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_is_its_runs_by_hand_and_never_runs_twice(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    arguments = ("sweep", recipe, "--grid", "sample.k=2,3", "--jobs", 2, "--out", out)
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    assert call("run", recipe, "--set", "sample.k=3", "--out", tmp_path / "hand").exit_code == 0
    by_hand = [json.loads(line) for line in (tmp_path / "hand/metrics.jsonl").read_text().splitlines()]
    two, three = read(out / "results.jsonl")
    assert [two.cell.values, three.cell.values] == [{"sample.k": "2"}, {"sample.k": "3"}]
    for figure in (REWARD, "heldout/perplexity", "chosen/reward_mean"):
        assert last(three, figure) == pytest.approx(by_hand[-1][figure], rel=1e-5)
    assert not list(out.glob("cells/*/*/rounds/*/policy"))  # weights are let go, candidates stay
    assert len(list(out.glob("cells/*/*/rounds/0001/scored.parquet"))) == 2
    assert (out / "table.md").read_text().splitlines()[3].startswith("| 2 | 1 |")
    for name in ("settings.png", "rounds.png"):
        with Image.open(out / name) as picture:
            assert picture.size[0] > 400

    before = stamps(out)
    assert call(*arguments).exit_code == 0
    assert stamps(out) == before
    other = call(*arguments, "--set", "tune.learning_rate=0.5")
    assert other.exit_code == 2
    assert "tune.learning_rate (0.001 → 0.5)" in other.output
    assert stamps(out) == before


def stamps(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.glob("cells/**/*") if path.is_file()}


def test_a_cell_that_fails_does_not_stop_the_others(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def vowels(completions):\n    return [1.0] * len(completions)\n"
        "def broken(completions):\n    raise RuntimeError('no such luck')\n"
    )
    cells = grid(["reward=my_rewards.py:broken,my_rewards.py:vowels"], [0])
    found: list[Any] = []
    with pytest.raises(UserError, match=r"1 of 2 cells failed.*no such luck.*seed-0\.log"):
        found.extend(Sweep(recipe, cells, tmp_path / "sweep").run())
    assert len(read(tmp_path / "sweep/results.jsonl")) == 1


def test_a_stopped_sweep_resumes_its_cell(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    arguments = ("sweep", recipe, "--grid", "sample.k=2", "--set", "rounds=60", "--out", out)
    first = process(*arguments)
    while not list(out.glob("cells/*/*/rounds/0001/DONE")):
        assert first.poll() is None, first.stderr.read() if first.stderr else ""
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 3, said
    (done,) = out.glob("cells/*/*/rounds/0001/DONE")
    stamp = done.stat().st_mtime_ns
    number = len(list(out.glob("cells/*/*/rounds/*/DONE")))
    assert number < 60
    again = call(*arguments[:-2], "--set", f"rounds={number + 1}", "--out", out)  # rounds may change on the way
    assert again.exit_code == 0, again.output
    assert done.stat().st_mtime_ns == stamp
    assert read(out / "results.jsonl")[0].rounds[-1]["round"] == number + 1


def test_what_left_the_recipe_is_a_change_too(recipe: Path, tmp_path: Path) -> None:
    """Without filters, adapter or patience the old figures are of another recipe."""
    plain = recipe.read_text()
    out = tmp_path / "sweep"
    first = call("sweep", recipe, "--set", "select.filters.length=[0, 99]", "--set", "tune.lora.r=2", "--out", out)
    assert first.exit_code == 0, first.output
    again = call("sweep", recipe, "--out", out)
    assert again.exit_code == 2
    assert "select.filters.length" in again.stderr
    assert "tune.lora.r" in again.stderr
    assert recipe.read_text() == plain
    impatient = ["--set", "select.filters.length=[0, 99]", "--set", "tune.lora.r=2", "--set", "evaluate.patience=1"]
    again = call("sweep", recipe, *impatient, "--out", out)
    assert again.exit_code == 2
    assert "evaluate.patience (None → 1)" in again.stderr


def test_settings_are_shown_as_they_are_written(recipe: Path, tmp_path: Path) -> None:
    """No markup, no formula, no further column of a table."""
    spec = "regex:[/a]|$x_{$"
    done = call("sweep", recipe, "--grid", f"reward={spec}", "--out", tmp_path / "sweep[/x]")
    assert done.exit_code == 0, done.output
    assert "sweep[/x]: results.jsonl" in done.stdout.replace("\n", "")
    rows = (tmp_path / "sweep[/x]" / "table.md").read_text().splitlines()
    assert len({row.count("|") for row in rows}) == 1
    assert read(tmp_path / "sweep[/x]" / "results.jsonl")[0].cell.values == {"reward": spec}


def test_a_reward_that_ends_the_process_quietly_has_failed(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text("import os\ndef leave(completions):\n    os._exit(0)\n")
    done = call("sweep", recipe, "--grid", "reward=leaving.py:leave,my_rewards.py:vowels", "--out", tmp_path / "sweep")
    assert done.exit_code == 2
    assert "1 of 2 cells failed, the others are done; reward=leaving.py:leave seed 0" in done.stderr
    assert len(read(tmp_path / "sweep" / "results.jsonl")) == 1
