"""The command line as a user meets it: stages on files, exit codes, one line for bad input, signals."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import EOS, build_tokenizer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from raftune import table
from raftune.cli import app
from raftune.exits import exits

CODEC = table.TextCodec()
REWARDS = """
import time

def vowels(completions):
    return [float(sum(c in "aeiou" for c in text)) for text in completions]

def slow(completions):
    time.sleep(0.2)
    return vowels(completions)

def short(completions):
    return [1.0]

def broken(completions):
    raise RuntimeError("no such luck")

def by_answer(completions, answer):
    return answer

def infinite(completions):
    return [float("inf")] * len(completions)
"""


@pytest.fixture
def work(tmp_path: Path, tiny: Path) -> Path:
    """A folder with prompts, rewards and a recipe for the tiny model."""
    prompts = [{"id": f"p{i}", "prompt": f"The film number {i}"} for i in range(24)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    write_recipe(tmp_path, tiny)
    return tmp_path


RECIPES: dict[str, dict[str, Any]] = {
    "text": {
        "prompts": {"path": "prompts.jsonl", "heldout": 6},
        "reward": "my_rewards.py:vowels",
        "sample": {"prompts_per_round": 8, "k": 4, "max_new_tokens": 12, "shard": 2},
        "tune": {"learning_rate": 1e-3, "batch_size": 2, "save_steps": 1, "epochs": 2},
        "rounds": 2,
    },
    "image": {
        "prompts": {"path": "prompts.jsonl", "heldout": "prompts.jsonl", "disjoint": False},
        "reward": "jpeg-compressibility",
        "sample": {"prompts_per_round": 2, "k": 4, "shard": 1, "steps": 2, "height": 16, "width": 16},
        "tune": {"learning_rate": 1e-2, "batch_size": 2, "steps": 4, "lora": {"r": 2, "alpha": 4}},
        "rounds": 2,
    },
}


def write_recipe(folder: Path, model: Path, modality: str = "text", **changes: Any) -> Path:
    recipe = {"modality": modality, "model": str(model), **RECIPES[modality], **changes}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "RAFTUNE_DTYPE": "float32", "OMP_NUM_THREADS": "1"}


def process(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raftune.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def test_every_stage_alone_on_files(work: Path, tiny: Path) -> None:
    """sample → score → select → tune → evaluate, and each file is what the next one reads."""
    files = {name: work / f"{name}.parquet" for name in ("candidates", "scored", "chosen")}
    sampled = call(
        *("sample", "--policy", tiny, "--prompts", work / "prompts.jsonl", "--k", 4, "--max-new-tokens", 10),
        *("--temperature", 0.9, "--seed", 3, "--out", files["candidates"]),
    )
    assert sampled.exit_code == 0, sampled.output
    reward = f"{work / 'my_rewards.py'}:vowels"
    assert (
        call(
            "score",
            "--candidates",
            files["candidates"],
            "--reward",
            reward,
            "--reward",
            "vader",
            "--out",
            files["scored"],
        ).exit_code
        == 0
    )
    assert call("select", "--scored", files["scored"], "--rule", "best", "--out", files["chosen"]).exit_code == 0
    tuned = call(
        "tune", "--policy", tiny, "--chosen", files["chosen"], "--learning-rate", 1e-3, "--out", work / "policy"
    )
    assert tuned.exit_code == 0, tuned.output
    evaluated = call(
        *("evaluate", "--policy", work / "policy", "--initial", tiny, "--prompts", work / "prompts.jsonl"),
        *("--reward", reward, "--monitor", "vader", "--max-new-tokens", 10, "--out", work / "metrics.json"),
    )
    assert evaluated.exit_code == 0, evaluated.output
    candidates, scored, chosen = (
        table.read_candidates(files["candidates"], CODEC),
        table.read_scored(files["scored"], CODEC),
        table.read_scored(files["chosen"], CODEC),
    )
    assert [s.candidate for s in scored] == candidates
    assert len(candidates) == 96
    assert all(s.reward == s.parts["vowels"] + s.parts["vader"] for s in scored)
    for one in chosen:
        rivals = [s.reward for s in scored if s.candidate.prompt == one.candidate.prompt]
        assert one.reward == max(rivals)
    assert len(chosen) == 24
    AutoModelForCausalLM.from_pretrained(work / "policy")
    figures = json.loads((work / "metrics.json").read_text())
    assert {"heldout/reward_mean", "heldout/perplexity", "heldout/kl", "heldout/distinct_1"} <= figures.keys()
    assert figures["heldout/reward/vowels"] == figures["heldout/reward_mean"]
    assert -1 <= figures["heldout/vader"] <= 1  # a monitor: watched, and no part of the reward


def test_a_run_from_recipe_to_answers_before_and_after(work: Path) -> None:
    result = call("run", work / "recipe.yaml", "--out", work / "run")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2]
    promised = {"heldout/reward_mean", "heldout/perplexity", "memory/peak_bytes", "time/evaluate_s"}
    assert promised <= rows[0].keys()
    assert "sample/reward_mean" not in rows[0]
    promised |= {
        "sample/reward_mean",
        "chosen/reward_mean",
        "sample/distinct_1",
        "sample/distinct_2",
        "sample/length_mean",
    }
    promised |= {
        "sample/tokens_per_s",
        "tune/tokens_per_s",
        "time/sample_s",
        "time/score_s",
        "time/tune_s",
        "time/round_s",
    }
    assert promised <= rows[2].keys()
    assert rows[2]["chosen/reward_mean"] > rows[2]["sample/reward_mean"]
    assert rows[0]["heldout/kl"] == pytest.approx(0, abs=1e-3)
    assert "round 1" in result.output
    assert "before" in result.output
    assert "best policy" in result.output
    held = table.read_scored(work / "run" / "rounds" / "0000" / "heldout.parquet", CODEC)
    trained = {
        c.prompt.id
        for path in work.glob("run/rounds/*/candidates/*.parquet")
        for c in table.read_candidates(path, CODEC)
    }
    assert len(held) == 6
    assert trained.isdisjoint(s.candidate.prompt.id for s in held)
    again = call("run", work / "recipe.yaml", "--out", work / "run")
    assert again.exit_code == 0
    assert [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()] == rows


def test_more_rounds_go_on_where_the_run_ended(work: Path) -> None:
    assert call("run", work / "recipe.yaml", "--out", work / "a", "--set", "rounds=1").exit_code == 0
    assert call("run", work / "recipe.yaml", "--out", work / "a", "--set", "rounds=2").exit_code == 0
    assert call("run", work / "recipe.yaml", "--out", work / "b").exit_code == 0
    for part in ("candidates/00003.parquet", "chosen.parquet", "policy/model.safetensors"):
        one, other = (work / name / "rounds" / "0002" / part for name in "ab")
        assert one.read_bytes() == other.read_bytes()


def test_patience_stops_a_run_that_gets_no_better(work: Path, tiny: Path) -> None:
    """A reward that only falls: round 0 stays the best."""
    (work / "my_rewards.py").write_text(
        "n = []\ndef vowels(completions):\n    n.append(0)\n    return [-float(len(n))] * len(completions)\n"
    )
    write_recipe(work, tiny, rounds=6, evaluate={"patience": 2})
    assert call("run", work / "recipe.yaml", "--out", work / "run").exit_code == 0
    rows = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert (work / "run" / "best").resolve() == tiny.resolve()


def test_normalised_rewards_still_tell_rounds_apart(work: Path, tiny: Path) -> None:
    """Standardised by round 0: there the mean is 0, later it moves with the raw part."""
    write_recipe(work, tiny, reward=[{"use": "my_rewards.py:vowels", "normalise": "zscore"}], evaluate={"k": 4})
    assert call("run", work / "recipe.yaml", "--out", work / "run").exit_code == 0
    rows = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    held = [table.read_scored(work / "run" / "rounds" / f"000{n}" / "heldout.parquet", CODEC) for n in range(3)]
    first = [s.parts["vowels"] for s in held[0]]
    mean = sum(first) / len(first)
    deviation = (sum((value - mean) ** 2 for value in first) / len(first)) ** 0.5
    for row, scored in zip(rows, held, strict=True):
        raw = sum(s.parts["vowels"] for s in scored) / len(scored)
        assert row["heldout/reward/vowels"] == pytest.approx(raw)
        assert row["heldout/reward_mean"] == pytest.approx((raw - mean) / deviation, abs=1e-9)
    assert rows[2]["heldout/reward_mean"] != rows[0]["heldout/reward_mean"]


def test_a_crash_between_commit_and_evaluation_loses_no_figure(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raftune.experiment import Experiment

    assert call("run", work / "recipe.yaml", "--out", work / "a", "--set", "rounds=1").exit_code == 0
    complete = Experiment.complete
    monkeypatch.setattr(Experiment, "complete", lambda self, n: complete(self, n) if n == 0 else 1 / 0)
    assert call("run", work / "recipe.yaml", "--out", work / "b", "--set", "rounds=1").exit_code == 1
    monkeypatch.setattr(Experiment, "complete", complete)
    assert call("run", work / "recipe.yaml", "--out", work / "b", "--set", "rounds=1").exit_code == 0
    one, other = (json.loads((work / name / "metrics.jsonl").read_text().splitlines()[1]) for name in "ab")
    assert one.keys() == other.keys()
    assert one["heldout/reward_mean"] == other["heldout/reward_mean"]


def test_prompts_whose_ranking_tells_nothing_are_counted(work: Path) -> None:
    """Of the eight prompts of a round those with an even number all tie, every third has no reward at all."""
    (work / "my_rewards.py").write_text(
        "def vowels(prompts, completions):\n"
        "    n = [int(p.split()[-1]) for p in prompts]\n"
        "    return [None if i % 3 == 0 else 1.0 if i % 2 == 0 else j for j, i in enumerate(n)]\n"
    )
    assert call("run", work / "recipe.yaml", "--out", work / "run", "--set", "rounds=1").exit_code == 0
    here = work / "run" / "rounds" / "0001"
    drawn = [int(p.id[1:]) for p in table.read_prompts(here / "prompts.parquet")]
    row = json.loads((here / "metrics.json").read_text())
    assert row["select/unscored_prompts"] == sum(n % 3 == 0 for n in drawn)
    assert row["select/tied_prompts"] == sum(n % 2 == 0 and n % 3 != 0 for n in drawn)
    assert row["chosen/candidates"] == 8 - row["select/unscored_prompts"]


def test_lora_runs_too(work: Path, tiny: Path) -> None:
    result = call("run", work / "recipe.yaml", "--out", work / "run", "--set", "tune.lora.r=4")
    assert result.exit_code == 0, result.output
    assert (work / "run" / "rounds" / "0002" / "policy" / "adapter_model.safetensors").exists()


def test_dry_run_checks_everything_and_writes_nothing(work: Path) -> None:
    before = sorted(work.iterdir())
    result = call("run", work / "recipe.yaml", "--out", work / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "18 to train, 6 held out" in result.output
    assert "ready" in result.output
    assert [p for p in sorted(work.iterdir()) if p.name != "__pycache__"] == before
    for change, said in [("reward=my_rewards.py:broken", "no such luck"), ("model=./nowhere", "nowhere")]:
        failed = call("run", work / "recipe.yaml", "--dry-run", "--set", change)
        assert failed.exit_code == 2
        assert said in failed.stderr


def test_own_parts_stand_where_built_in_names_do(work: Path) -> None:
    (work / "my_parts.py").write_text(
        "from raftune.types import Candidate, Text\n"
        "class Echo:\n"
        "    def __init__(self, max_new_tokens): self.n = max_new_tokens\n"
        "    def sample(self, policy, prompts, k, seed):\n"
        "        return [Candidate(p, i, Text('a' * (i + 1), None), 'echo') for p in prompts for i in range(k)]\n"
    )
    result = call(
        "run",
        work / "recipe.yaml",
        "--out",
        work / "run",
        "--set",
        "sample.backend=my_parts.py:Echo",
        "--set",
        "rounds=1",
    )
    assert result.exit_code == 0, result.output
    chosen = table.read_scored(work / "run" / "rounds" / "0001" / "chosen.parquet", CODEC)
    assert {(s.candidate.source, s.candidate.output.text) for s in chosen} == {("echo", "aaaa")}


def bad_input(work: Path, tiny: Path) -> dict[str, tuple[list[object], str]]:
    recipe = work / "recipe.yaml"
    (work / "bad.jsonl").write_text('{"prompt": "a"}\n{oops\n')
    (work / "other.jsonl").write_text('{"text": "a"}\n')
    empty = work / "empty_model"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    run = ["run", recipe, "--out", work / "run"]
    return {
        "misspelt key": (
            [*run, "--set", "sample.temprature=1"],
            "sample.temprature: no such key; did you mean 'temperature'?",
        ),
        "missing recipe": (["run", work / "absent.yaml"], "absent.yaml: no such file"),
        "missing prompts": ([*run, "--set", "prompts.path=absent.jsonl"], "absent.jsonl: no such file"),
        "bad json": ([*run, "--set", "prompts.path=bad.jsonl"], "bad.jsonl line 2: not JSON"),
        "missing column": ([*run, "--set", "prompts.path=other.jsonl"], "line 1: no column 'prompt'; it has text"),
        "k below one": ([*run, "--set", "sample.k=0"], "sample.k: should be greater than or equal to 1"),
        "temperature zero": ([*run, "--set", "sample.temperature=0"], "sample.temperature: should be greater than 0"),
        "temperature of a stage": (
            ["sample", "--policy", tiny, "--prompts", work / "prompts.jsonl", "--temperature", 0, "--out", work / "c"],
            "sample.temperature: should be greater than 0, got 0.0",
        ),
        "too few values": ([*run, "--set", "reward=my_rewards.py:short"], "returned 1 values for 6 candidates"),
        "infinite": ([*run, "--set", "reward=my_rewards.py:infinite"], "returned inf for prompt"),
        "missing reward column": ([*run, "--set", "reward=my_rewards.py:by_answer"], "needs the column 'answer'"),
        "no weights": ([*run, "--set", f"model={empty}"], "has a config but no weights"),
        "no model": ([*run, "--set", f"model={work}"], "has no config.json and no model_index.json"),
        "wrong rule": ([*run, "--set", "select.rule=bset"], "'bset' is not a rule; use one of best"),
        "wrong backend": ([*run, "--set", "sample.backend=vlm"], "sample.backend: 'vlm' is unknown"),
        "too many prompts": ([*run, "--set", "sample.prompts_per_round=19"], "19 is more than the 18 prompts"),
        "unknown asset": ([*run, "--set", "model=asset:nothing"], "no such asset; there is asset:smollm2"),
        "reserved name": ([*run, "--set", "evaluate.also.sample.k=1"], "evaluate.also.sample: figures of that name"),
        "further key": (
            [*run, "--set", "evaluate.also.far.sample.height=8"],
            "evaluate.also.far.sample.height: no such key",
        ),
        "no file to score": (
            ["score", "--candidates", work / "absent.parquet", "--reward", "vader", "--out", work / "s"],
            "absent.parquet: no such file",
        ),
    }


CASES = [
    *(
        "misspelt key",
        "missing recipe",
        "missing prompts",
        "bad json",
        "missing column",
        "k below one",
        "temperature zero",
    ),
    *("temperature of a stage", "too few values", "infinite", "missing reward column", "no weights", "no model"),
    *("wrong rule", "wrong backend", "too many prompts", "unknown asset", "no file to score"),
    *("reserved name", "further key"),
]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_line_and_exit_2(case: str, work: Path, tiny: Path) -> None:
    arguments, said = bad_input(work, tiny)[case]
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_every_bad_input_is_tried(work: Path, tiny: Path) -> None:
    assert set(CASES) == set(bad_input(work, tiny))


def test_the_directory_of_another_recipe(work: Path) -> None:
    assert call("run", work / "recipe.yaml", "--out", work / "run", "--set", "rounds=1").exit_code == 0
    edited = call("run", work / "recipe.yaml", "--out", work / "run", "--set", "sample.k=5")
    assert edited.exit_code == 2
    assert "sample.k (4 → 5)" in edited.stderr
    with (work / "prompts.jsonl").open("a") as file:
        file.write('\n{"prompt": "one more"}')
    changed = call("run", work / "recipe.yaml", "--out", work / "run")
    assert changed.exit_code == 2
    assert "prompts.path sha256" in changed.stderr


def test_a_failing_reward_loses_nothing(work: Path, tiny: Path) -> None:
    """It breaks in the first round: the candidates stay, and with the reward mended the same command goes on."""
    fine = (work / "my_rewards.py").read_text()
    (work / "my_rewards.py").write_text(
        "n = []\ndef vowels(completions):\n    n.append(0)\n"
        "    assert len(n) < 3\n    return [0.0] * len(completions)\n"
    )
    failed = call("run", work / "recipe.yaml", "--out", work / "run")
    assert failed.exit_code == 2
    kept = {p: p.stat().st_mtime_ns for p in sorted((work / "run" / "rounds" / "0001" / "candidates").iterdir())}
    assert len(kept) == 4
    (work / "my_rewards.py").write_text(fine)
    assert call("run", work / "recipe.yaml", "--out", work / "run").exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_a_mended_reward_scores_the_whole_round(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It breaks after some shards; the new version's numbers never stand beside the old one's."""
    old = "n = []\ndef vowels(completions):\n    n.append(0)\n    assert len(n) < 4\n"
    (work / "my_rewards.py").write_text(f"{old}    return [1000.0] * len(completions)\n")
    assert call("run", work / "recipe.yaml", "--out", work / "run", "--set", "rounds=1").exit_code == 2
    assert len(list((work / "run" / "rounds" / "0001" / "scoring").iterdir())) == 2
    (work / "my_rewards.py").write_text(
        "def vowels(completions):\n    return [float(i) for i in range(len(completions))]\n"
    )
    assert call("run", work / "recipe.yaml", "--out", work / "run", "--set", "rounds=1").exit_code == 0
    scored = table.read_scored(work / "run" / "rounds" / "0001" / "scored.parquet", CODEC)
    assert max(s.reward for s in scored) < 1000
    assert "the reward's code changed since this run began" in caplog.text


def test_a_shortened_run_says_what_is_best(work: Path) -> None:
    changes = ["--set", "evaluate.every=2", "--out", work / "run"]
    assert call("run", work / "recipe.yaml", *changes, "--set", "rounds=4").exit_code == 0
    assert call("run", work / "recipe.yaml", *changes, "--set", "rounds=3").exit_code == 0


def test_what_is_the_users_is_not_overwritten(work: Path, tiny: Path) -> None:
    """`--out` is looked at before any work is done."""
    mine = work / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("precious")
    stages = {
        "tune": ["--policy", tiny, "--chosen", work / "absent.parquet"],
        "sample": ["--policy", tiny, "--prompts", work / "prompts.jsonl"],
        "score": ["--candidates", work / "absent.parquet", "--reward", "vader"],
        "select": ["--scored", work / "absent.parquet"],
    }
    for stage, arguments in stages.items():
        for out in (mine, work / "prompts.jsonl" / "below"):
            result = call(stage, *arguments, "--out", out)
            assert result.exit_code == 2
            assert f"--out {out}" in result.stderr
    assert (mine / "notes.txt").read_text() == "precious"


DAMAGE = {
    "rounds/0001/candidates/00001.parquet": "00001.parquet: not a parquet file, or damaged",
    "rounds/0000/metrics.json": "metrics.json: damaged; delete it",
    "fingerprint": "fingerprint: damaged",
    "rounds/0001/policy/model.safetensors": "does not load",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_one_line(name: str, work: Path) -> None:
    assert call("run", work / "recipe.yaml", "--out", work / "run", "--set", "rounds=1").exit_code == 0
    file = work / "run" / name
    file.write_bytes(file.read_bytes()[:20])
    if "candidates" in name:
        (work / "run" / "rounds" / "0001" / "DONE").unlink()
    result = call("run", work / "recipe.yaml", "--out", work / "run", "--set", "rounds=2")
    assert result.exit_code == 2, result.output
    assert DAMAGE[name] in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_full_disk_is_one_line(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real error of the real system call: /dev/full."""
    from raftune import files

    def to_full_disk(path: Path, value: Any) -> None:
        with Path("/dev/full").open("w") as full:
            full.write(json.dumps(value))

    if not Path("/dev/full").exists():
        return
    monkeypatch.setattr(files, "write_json", to_full_disk)
    result = call("run", work / "recipe.yaml", "--out", work / "run")
    assert result.exit_code == 2
    assert "no space left" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_place_that_cannot_be_written_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Raised by hand: root, whom tests may run as, is denied nothing."""

    @exits
    def command() -> None:
        raise OSError(number, os.strerror(number), "runs/mine/hub")

    with pytest.raises(typer.Exit) as ended:
        command()
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.exit_code == 2 and len(lines) == 1
    assert f"runs/mine/hub: {os.strerror(number)}" in lines[0]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("stage", ["sampling", "scoring", "tuning"])
def test_signals_finish_the_shard_and_exit_3(name: str, stage: str, work: Path, tiny: Path) -> None:
    # A tuning that would go on for half a minute: the signal meets it at work, however fast the machine is
    tune = {"learning_rate": 1e-3, "batch_size": 1, "epochs": 2000, "save_steps": 20}
    write_recipe(work, tiny, reward="my_rewards.py:slow", tune=tune)
    signs = {
        "sampling": "candidates/00001.parquet",
        "scoring": "scoring/00000.json",
        "tuning": "policy.tuning/step.json",
    }
    sign = signs[stage]
    running = process("run", work / "recipe.yaml", "--out", work / "run")
    wait_for(work / "run" / "rounds" / "0001" / sign, running)
    running.send_signal(getattr(signal, name))
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 3, errors
    assert f"stopped by {name}; the same command resumes" in errors
    assert "Traceback" not in errors
    here = work / "run" / "rounds" / "0001"
    assert not (here / "DONE").exists()
    if stage == "tuning":
        assert (here / "policy.tuning" / "step.json").exists()


def wait_for(path: Path, running: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.005)


def test_help_is_there_without_torch() -> None:
    code = "import sys, raftune, raftune.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    result = call("--help")
    assert result.exit_code == 0
    for command in ("run", "sample", "score", "select", "tune", "evaluate"):
        assert re.search(rf"\b{command}\b", result.output)


def test_finished_candidates_end_with_end_of_sequence(work: Path, model_of: Callable[..., Path]) -> None:
    out = work / "c.parquet"
    folder = model_of("llama", scale=0.3)
    assert (
        call(
            "sample",
            "--policy",
            folder,
            "--prompts",
            work / "prompts.jsonl",
            "--k",
            8,
            "--max-new-tokens",
            60,
            "--out",
            out,
        ).exit_code
        == 0
    )
    candidates = table.read_candidates(out, CODEC)
    finished = [c for c in candidates if c.output.finish_reason == "stop"]
    assert 0 < len(finished) < len(candidates)
    assert all(c.output.token_ids[-1] == EOS for c in finished)
    assert all(EOS not in c.output.token_ids for c in candidates if c.output.finish_reason == "length")
    assert finished[0].output.text == build_tokenizer().decode(finished[0].output.token_ids, skip_special_tokens=True)
