"""Whole runs with `sample.backend: vllm`, as a user starts them: two rounds of the quickstart, and killed half-way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

import psutil
import pytest
from conftest import ROOT

from raftune import table
from raftune.likelihood import logprobs
from raftune.types import Candidate

pytestmark = pytest.mark.usefixtures("free")
CHANGES = [
    *("sample.backend=vllm", "sample.vllm.max_model_len=256", "rounds=2", "prompts.heldout=8", "keep=all"),
    *("sample.prompts_per_round=8", "sample.k=4", "sample.max_new_tokens=16", "sample.shard=4"),
    *("evaluate.k=1", "tune.learning_rate=1e-4"),
]
CODEC = table.TextCodec()


def start(out: Path, *changes: str) -> subprocess.Popen[str]:
    flags = [part for change in (*CHANGES, *changes) for part in ("--set", change)]
    command = [sys.executable, "-m", "raftune.cli", "run", "recipes/quickstart.yaml", "--out", str(out), *flags]
    environment = {**os.environ, "RAFTUNE_DTYPE": "bfloat16"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(out: Path, *changes: str) -> None:
    process = start(out, *changes)
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors[-3000:]
    assert "Traceback" not in errors


def answers(out: Path) -> dict[str, list[tuple[int, ...]]]:
    files = sorted(out.glob("rounds/*/candidates/*.parquet"))
    return {
        str(file.relative_to(out)): [one.output.token_ids for one in table.read_candidates(file, CODEC)]
        for file in files
    }


def folder(number: int) -> str:
    return f"rounds/{number:04d}"


def apart(policy: Path, answered: list[Candidate]) -> float:
    """How far what the engine said of its answers is from what a forward pass says: nats an answer."""
    ours = [total for total, _ in logprobs(str(policy), answered)]
    return fmean(abs(one.logprob - total) for one, total in zip(answered, ours, strict=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(out)
    return out


def test_two_rounds_of_the_quickstart(undisturbed: Path) -> None:
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert all({"heldout/reward_mean", "heldout/perplexity", "heldout/kl"} <= row.keys() for row in rows)
    # KL of the initial policy to itself: what vLLM says of its draws is what our forward pass says, but for rounding
    assert abs(rows[0]["heldout/kl"]) < 0.5
    for number in (1, 2):  # the weights of that round have answered, and no others
        answered = [
            one.candidate for one in table.read_scored(undisturbed / f"{folder(number)}/heldout.parquet", CODEC)
        ]
        far = {at: apart(undisturbed / folder(at) / "policy", answered) for at in (1, 2)}
        print(f"round {number}: nats an answer from the weights of each round: {far}")
        assert far[number] < 0.7 * far[3 - number]
    assert rows[1]["chosen/reward_mean"] > rows[1]["sample/reward_mean"]
    assert len(answers(undisturbed)) == 4


def test_killed_and_resumed(undisturbed: Path, tmp_path: Path) -> None:
    """Killed after a shard of each round: finished shards stay, the run ends, and no process of the engine is left."""
    out = tmp_path / "run"
    for point in ("rounds/0001/candidates/00000.parquet", "rounds/0002/candidates/00000.parquet"):
        process = start(out)
        children: set[psutil.Process] = set()
        while not (out / point).exists():
            assert process.poll() is None, process.communicate()[1][-3000:]
            children |= set(psutil.Process(process.pid).children(recursive=True))
            time.sleep(0.05)
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
    kept = {path: path.stat().st_mtime_ns for path in out.glob("rounds/*/candidates/*.parquet")}
    finish(out)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    one, other = answers(out), answers(undisturbed)
    assert one.keys() == other.keys()
    first = [name for name in one if "/0001/" in name]
    same = [a == b for name in first for a, b in zip(one[name], other[name], strict=True)]
    print(f"resumed: {sum(same)} of {len(same)} answers of round 1 as undisturbed")
    assert sum(same) >= 0.9 * len(same)


def test_dry_run_and_an_engine_that_leaves(tmp_path: Path) -> None:
    """`--dry-run`, then one stage by itself whose memory is wanted by another model."""
    flags = [part for change in (*CHANGES, "sample.vllm.idle=stop") for part in ("--set", change)]
    command = [sys.executable, "-m", "raftune.cli", "run", "recipes/quickstart.yaml", "--dry-run", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "reward" in result.stdout
