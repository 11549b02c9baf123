"""What a recipe will take: the arithmetic against closed forms, the bounds and the disk against what a run reaches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import build_model
from typer.testing import CliRunner

from raftune import bounds
from raftune.advice import advise
from raftune.bounds import Shape
from raftune.cli import app
from raftune.estimate import Batch, Decoder, Disk, Drawn, Line, Rates, Tuning, Work, predict, survival
from raftune.rates import fitted

SHAPE = Shape(
    parameters=1000, layers=2, hidden=8, inner=16, heads=2, query=8, key=4, vocabulary=100, stored=2000, width=2
)


def work(**changes: Any) -> Work:
    drawn = Drawn(Decoder(0.5, 2.0, 0.25), [Batch(8, 2, 3)], [1.0, 1.0, 1.0])
    given: dict[str, Any] = {
        "rounds": 3,
        "sampled": [drawn],
        "probes": [drawn],
        "candidates": 8,
        "chosen": 2,
        "batch": 4,
        **changes,
    }
    return Work(**given)


RATES = Rates(
    first=7.0,
    load=1.0,
    score=Line(0.5, 0.125),
    watch=Line(),
    read=Line(0.0, 0.25),
    tuning=Tuning(2.0, 3.0, 1.0),
    report=0.25,
)


def test_decoding_costs_each_step_its_share_of_live_rows() -> None:
    rates = Decoder(prompt=0.5, step=2.0, row=0.25, position=0.125, candidate=1.0)
    alive = [1.0, 0.5]  # two tokens at most; half of the rows end after the first
    # prefill 2·3·0.5, candidates 4·1, one step: any of four alive 1 - 1/16, two rows, two rows at 3 + 1 positions
    expected = 3.0 + 4.0 + 2.0 * (1 - 0.5**4) + 0.25 * 2 + 0.125 * 2 * 4
    assert rates.seconds([Batch(4, 2, 3)], alive) == pytest.approx(expected)
    assert rates.seconds([Batch(4, 2, 3)] * 2, alive) == pytest.approx(2 * expected)


def test_answers_that_were_cut_do_not_count_as_ended() -> None:
    assert survival([3, 3], [False, False], 5) == [1.0] * 5
    # one of four ends at 1, one of the three left at 2, the other two are cut at 4
    alive = survival([1, 2, 4, 4], [True, True, False, False], 6)
    assert alive[:4] == pytest.approx([1.0, 0.75, 0.5, 0.5])
    hazard = 2 / 11  # two ended in eleven drawn tokens: goes on beyond what was drawn
    assert alive[5] == pytest.approx(0.5 * (1 - hazard))


def test_rates_are_found_again_and_never_negative() -> None:
    points = [(n, n * p, 2.0 + 0.5 * n + 0.01 * n * p) for n in (4.0, 32.0) for p in (10.0, 20.0, 40.0)]
    assert fitted(points) == pytest.approx((2.0, 0.5, 0.01))
    falling = [(1.0, 1.0, 3.0), (2.0, 2.0, 2.0), (4.0, 8.0, 1.0)]
    assert min(fitted(falling)) >= 0
    assert fitted([]) == (0.0, 0.0, 0.0)


def test_a_line_through_points() -> None:
    assert Line.through([(1, 3), (3, 7)]) == Line(1.0, 2.0)
    assert Line.through([(4, 2)]) == Line(0.0, 0.5)
    assert Line.through([(1, 3), (3, 2)]) == Line(2.5, 0.0)
    assert Line.through([(2, 1), (4, 3)]).fixed == 0.0  # through the origin rather than below it


def test_rounds_in_closed_form() -> None:
    drawing = 0.5 * 2 * 3 + 2 * (2.0 + 0.25 * 8)
    evaluation = drawing + (0.5 + 8 * 0.125) + 8 * 0.25
    first, one, two, three = predict(work(), RATES)
    assert first == {"evaluate": pytest.approx(evaluation + 7.0), "other": 0.25}  # a report each, of round 0 too
    assert one["other"] == three["other"] == 0.25
    assert one["sample"] == pytest.approx(drawing)  # the initial policy is still there
    assert two["sample"] == pytest.approx(drawing + 1.0)
    assert two["score"] == pytest.approx(1.5) and two["tune"] == pytest.approx(2 + 3 + 1)
    assert three["evaluate"] == pytest.approx(evaluation + 2.0)


def test_evaluation_is_not_due_every_round_but_in_the_last() -> None:
    rows = predict(work(every=2), RATES)
    assert ["evaluate" in row for row in rows] == [True, False, True, True]


def test_steps_of_passes_caps_and_earlier_winners() -> None:
    assert work(chosen=9, passes=2).steps(1) == 6
    assert work(chosen=9, passes=40, most=70).steps(1) == 70
    assert [work(chosen=8, buffer=2).steps(number) for number in (1, 2, 3, 4)] == [2, 4, 6, 6]
    assert work(chosen=0).steps(1) == 1


def test_disk_in_closed_form() -> None:
    disk = Disk(policy=100.0, tables=10.0, evaluation=5.0, state=7.0, once=1.0)
    tables = 1 + 3 * 10 + 4 * 5
    assert disk.end(work(), False) == (tables + 100, tables + 200)
    assert disk.end(work(), True) == (tables + 300, tables + 300)
    assert disk.peak(work(), False) == tables + 300 + 7
    assert disk.end(work(rounds=1), False) == (1 + 10 + 10 + 100,) * 2


def test_the_advice_is_what_the_arithmetic_says() -> None:
    slow = Rates(0.0, 0.0, Line(), Line(), Line(), Tuning(0.0, 100.0, 0.0))
    line = advise(work(passes=2), slow)
    spent = sum(sum(row.values()) for row in predict(work(passes=2), slow))
    saved = 3 * 100.0
    assert line.startswith("tune takes") and f"tune.epochs 1 would save {saved / spent:.0%}" in line


def test_one_evaluation_cannot_be_left_out() -> None:
    slow = Rates(0.0, 0.0, Line(), Line(), Line(0.0, 100.0), Tuning(0.0, 0.0, 0.0))
    assert "evaluate.every 2 would save" in advise(work(), slow)
    # twice 8 outputs at 100 s and 11 s of drawing, of which 4 outputs and 2 s go; 11 s of drawing in the round
    share = 2 * (400 + 2) / (2 * 811 + 11)
    assert f"half as many held-out outputs would save {share:.0%}" in advise(work(rounds=1), slow)


def test_memory_terms_in_closed_form() -> None:
    full = bounds.tuning(SHAPE, rows=2, prompt=3, output=4)
    assert (full["weights"], full["gradients"], full["moments"]) == (4000, 4000, 8000)
    assert full["logits"] == 2 * 5 * 100 * 2 * (2 + 4)
    assert bounds.tuning(SHAPE, 2, 3, 4, moment=1.0)["moments"] == 2000  # an optimiser of eight bits
    lora = bounds.tuning(SHAPE, 2, 3, 4, adapter=10)
    assert (lora["weights"], lora["gradients"], lora["moments"]) == (2040, 40, 80)
    less = bounds.tuning(SHAPE, 2, 3, 4, checkpointing=True)
    assert less["activations"] < full["activations"]
    drawn = bounds.sampling(SHAPE, rows=6, prompts=2, prompt=5, new=7)
    assert drawn["prefix cache"] == 2 * 5 * 2 * 2 * 4 * 2
    assert drawn["suffix cache"] == 6 * 7 * 2 * 2 * 4 * 2 * 1.5
    assert drawn["logits"] == 6 * 100 * 8


def test_a_stage_reaches_what_it_needs_or_what_was_left() -> None:
    found = bounds.reached({"sample": 1.0, "score": 0.0, "tune": 10.0, "evaluate": 4.0}, 100.0)
    process = 100 * bounds.LATER
    assert found["tune"] == found["sample"] == found["evaluate"] == process + 10 * bounds.HEAP
    waiting = bounds.reached({"tune": 1.0, "evaluate": 4.0}, 100.0, kept=3.0)
    assert waiting["evaluate"] == process + (4 + 3) * bounds.HEAP
    once = bounds.reached({"sample": 1.0, "score": 0.0, "tune": 10.0, "evaluate": 4.0}, 100.0, again=False)
    assert once["sample"] == process + (4 + 1) * bounds.HEAP
    assert found["score"] == process + (4 + 1) * bounds.HEAP  # the first round draws on top of what was evaluated


RECIPE: dict[str, Any] = {
    "reward": "rewards.py:vowels",
    "prompts": {"path": "prompts.jsonl", "heldout": 6},
    "sample": {"prompts_per_round": 8, "k": 4, "max_new_tokens": 24, "shard": 4},
    "tune": {"batch_size": 4, "epochs": 2},
    "evaluate": {"k": 2},
    "rounds": 2,
}


def recipe_in(folder: Path, model: Path, **changes: Any) -> Path:
    lines = [json.dumps({"prompt": f"The {word} of {at} is"}) for at in range(15) for word in ("sum", "name")]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    (folder / "rewards.py").write_text(
        "def vowels(prompts, completions, **columns):\n"
        "    return [float(sum(map(text.count, 'aeiou'))) for text in completions]\n"
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "model": str(model), "keep": "all", **changes}))
    return recipe


def ran(folder: Path, *command: str) -> str:
    """In a process of its own: peaks of memory are a process's."""
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    (folder / "tmp").mkdir(exist_ok=True)
    call = [sys.executable, "-m", "raftune.cli", *command]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_disk_and_memory_hold_on_a_run(tmp_path: Path, lora: Any) -> None:
    model = build_model(tmp_path / "model", hidden_size=128, intermediate_size=512, num_hidden_layers=3)
    recipe = recipe_in(tmp_path, model, tune={**RECIPE["tune"], "lora": lora})
    before = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
    told = json.loads(ran(tmp_path, "estimate", str(recipe), "--json", "--seconds", "3", "--price", "2"))
    left = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} - {*before, tmp_path / "tmp"}
    assert not left  # nothing in the temporary folder, no run directory
    assert [set(row) >= {"evaluate"} for row in told["rounds"]] == [True] * 3
    assert told["cost_eur"] == pytest.approx(2 * told["seconds"] / 3600)
    ran(tmp_path, "run", str(recipe), "--out", str(tmp_path / "run"))
    size = sum(path.lstat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert told["disk"]["most_bytes"] == pytest.approx(size, rel=0.25)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for stage in ("sample", "score", "tune", "evaluate"):
        peaks = [row[f"memory/{stage}_bytes"] for row in rows if f"memory/{stage}_bytes" in row]
        if peaks:
            assert max(peaks) <= told["stages"][stage]["memory_bytes"] <= 1.5 * max(peaks), stage


def test_a_data_sheet(tmp_path: Path, tiny: Path) -> None:
    recipe = recipe_in(tmp_path, tiny)
    sheet = tmp_path / "mine.yaml"
    sheet.write_text("{bf16_tflops: 100, memory_gb_s: 1000, memory_gb: 40, price_per_hour: 3}")
    done = CliRunner().invoke(app, ["estimate", str(recipe), "--machine", str(sheet), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["of"] == str(sheet) and "not measured" in told["assumes"][0]
    assert told["cost_eur"] == pytest.approx(3 * told["seconds"] / 3600)
    faster = CliRunner().invoke(app, ["estimate", str(recipe), "--machine", "h100-80gb", "--json"])
    assert json.loads(faster.stdout)["seconds"] <= told["seconds"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [(None, "use h100-80gb"), ("[1]", "mapping of keys"), ("{bf16_tflops: 1}", "memory_gb_s: is missing")],
)
def test_a_machine_that_is_none(tmp_path: Path, tiny: Path, text: str | None, fault: str) -> None:
    sheet = tmp_path / "mine.yaml"
    if text is not None:
        sheet.write_text(text)
    done = CliRunner().invoke(app, ["estimate", str(recipe_in(tmp_path, tiny)), "--machine", str(sheet)])
    assert done.exit_code == 2 and fault in " ".join(done.stderr.split())
