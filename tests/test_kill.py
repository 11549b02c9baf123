"""SIGKILL at many points of sampling, scoring and tuning: the resumed run ends as an undisturbed one does.

The process is the real command. No finished shard may be made again: a shard's file keeps its inode and its time.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from test_cli import process, work, write_recipe

from raftune import table

CODEC = table.TextCodec()
__all__ = ["work"]


def slow_recipe(folder: Path, tiny: Path) -> Path:
    """Every stage takes long enough to be hit: a shard is two prompts, a score 0.2 s, a tuning eight steps."""
    return write_recipe(
        folder,
        tiny,
        reward="my_rewards.py:slow",
        sample={"prompts_per_round": 8, "k": 4, "max_new_tokens": 40, "shard": 2},
        tune={"learning_rate": 1e-3, "batch_size": 2, "epochs": 2, "save_steps": 1},
    )


FINISHED = (  # the last two are what a round ends with
    *("candidates/*.parquet", "candidates/pictures/*.png", "prompts.parquet"),
    *("chosen.parquet", "policy/*.safetensors"),
)


def shards(run: Path) -> dict[str, tuple[int, int]]:
    """Every finished piece of work that must not be done again: where it lies, inode and time of writing."""
    found = [path for pattern in FINISHED for path in run.glob(f"rounds/*/{pattern}")]
    return {str(path.relative_to(run)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def outcome(run: Path) -> dict[str, bytes]:
    """Chosen sets and weights."""
    found = [path for pattern in FINISHED[-2:] for path in run.glob(f"rounds/*/{pattern}")]
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(found)}


def until(happened: Callable[[], bool], running: object, seconds: float = 60) -> bool:
    """Wait for something; False if the process ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happened():
            return True
        if running.poll() is not None:
            return False
        time.sleep(0.002)
    raise TimeoutError


def finish(recipe: Path, run: Path) -> None:
    """The run to its end."""
    last = process("run", recipe, "--out", run, "--set", "keep=all")
    _, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    assert not list(run.rglob("*.part"))


def killed_at(points: Sequence[str], recipe: Path, run: Path) -> None:
    """A run killed as soon as each of these is there, then finished; nothing that was done is made again."""
    kept: dict[str, tuple[int, int]] = {}
    for point in points:
        running = process("run", recipe, "--out", run, "--set", "keep=all")
        came = until((run / point).exists, running)
        running.kill()
        running.communicate()
        assert came, f"ended before {point}"
        now = shards(run)
        assert {name: now[name] for name in kept} == kept, f"made again before {point}"
        kept = now
    finish(recipe, run)
    now = shards(run)
    assert {name: now[name] for name in kept} == kept


POINTS = [  # what is on disk of a round when the process is killed
    *("rounds/0001/prompts.parquet", "rounds/0001/candidates/00000.parquet", "rounds/0001/candidates/00002.parquet"),
    *("rounds/0001/scoring/00001.json", "rounds/0001/scored.parquet", "rounds/0001/chosen.parquet"),
    *("rounds/0001/policy.tuning/step.json", "rounds/0001/policy", "rounds/0001/DONE", "rounds/0001/heldout.parquet"),
    *("rounds/0002/candidates/00001.parquet", "rounds/0002/scoring/00002.json", "rounds/0002/policy.tuning/step.json"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    from test_cli import REWARDS

    (folder / "my_rewards.py").write_text(REWARDS)
    lines = [f'{{"id": "p{i}", "prompt": "The film number {i}"}}' for i in range(24)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    finish(slow_recipe(folder, tiny), folder / "run")
    found = outcome(folder / "run")
    assert len(found) == 4
    return found


def test_killed_at_every_point_of_one_run(work: Path, tiny: Path, undisturbed: dict[str, bytes]) -> None:
    """One run, killed thirteen times: as soon as each of these is there."""
    killed_at(POINTS, slow_recipe(work, tiny), work / "run")
    assert outcome(work / "run") == undisturbed
    assert [row for row in (work / "run" / "metrics.jsonl").read_text().splitlines() if '"round": 1,' in row]


def test_killed_at_arbitrary_times(work: Path, tiny: Path, undisturbed: dict[str, bytes]) -> None:
    """Not at the seams but wherever it happens to be: later and later in each session."""
    recipe, run = slow_recipe(work, tiny), work / "run"
    kept: dict[str, tuple[int, int]] = {}
    kills = 0
    for extra in (0.0, 0.05, 0.15, 0.3, 0.5, 0.1, 0.2):
        running = process("run", recipe, "--out", run, "--set", "keep=all")
        before = set(shards(run))
        until(lambda before=before: set(shards(run)) != before, running)
        time.sleep(extra)
        running.kill()
        running.communicate()
        kills += running.returncode == -signal.SIGKILL
        now = shards(run)
        assert {name: now[name] for name in kept} == kept
        kept = now
    finish(recipe, run)
    now = shards(run)
    assert {name: now[name] for name in kept} == kept
    assert kills >= 4
    assert outcome(run) == undisturbed
