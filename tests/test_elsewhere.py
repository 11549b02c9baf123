"""A reward that is worked out elsewhere is asked while the next shard is sampled, and nothing else changes by it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_cli import CODEC, call, work, write_recipe
from test_store import Counter, contents, start

from raftune import files, interrupt, table
from raftune.errors import Interrupted, UserError
from raftune.reward.kl import KlReward
from raftune.score import Rewards, Weighted
from raftune.store import Run
from raftune.types import Candidate, Prompt

__all__ = ["work"]
PATIENCE = 20.0  # seconds: a test that waits for what never comes fails


class Elsewhere(Counter):
    """Scores in a thread of its own; every shard's sampling and scoring is told to ``told``."""

    elsewhere = True

    def __init__(self, fail_at: str = "") -> None:
        super().__init__(fail_at)
        self.shards = 0
        self.sampling = [threading.Event() for _ in range(9)]
        self.scored = [threading.Event() for _ in range(9)]
        self.threads: set[str] = set()

    def sample(self, policy: Any, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        self.sampling[self.shards].set()
        self.shards += 1
        return super().sample(policy, prompts, k, seed)

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        self.threads.add(threading.current_thread().name)
        return super().__call__(candidates)


class Waiting(Elsewhere):
    """Shard 0 is scored only once shard 1 is being sampled, and shard 2 is sampled only once shard 0 is scored."""

    met = 0

    def sample(self, policy: Any, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        if self.shards == 2:
            assert self.scored[0].wait(PATIENCE)
        return super().sample(policy, prompts, k, seed)

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        if not self.met:
            assert self.sampling[1].wait(PATIENCE), "shard 1 is not sampled while shard 0 is scored"
        values = super().__call__(candidates)
        self.scored[self.met].set()
        self.met += 1
        return values


class Here(Counter):
    """As any reward: it notes where it is called, and how many shards were sampled by then."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, int]] = set()

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        sampled = sum(call.startswith("sample") for call in self.calls)
        self.seen.add((threading.current_thread().name, sampled))
        return super().__call__(candidates)


def test_shard_0_is_scored_while_shard_1_is_sampled(tmp_path: Path) -> None:
    """Each waits for the other, so neither would end without the overlap; what is on disk is what is without."""
    parts = Waiting()
    with Run(tmp_path / "beside", "model") as run:
        metrics = start(run, parts, rounds=1)[0].metrics
    assert threading.main_thread().name not in parts.threads
    with Run(tmp_path / "after", "model") as run:
        plain = start(run, Here(), rounds=1)[0].metrics
    assert contents(tmp_path / "beside") == contents(tmp_path / "after")
    assert "time/elsewhere_s" in metrics and "time/elsewhere_s" not in plain
    spent = [metrics[f"time/{stage}_s"] for stage in ("sample", "score", "select", "tune")]
    assert metrics["time/round_s"] == pytest.approx(sum(spent))  # the reward's own time is not the round's


def test_what_works_here_never_overlaps(tmp_path: Path) -> None:
    """Nor does anything beside it: one part that works here keeps all of them after sampling."""
    parts = Here()
    with Run(tmp_path / "run", "model") as run:
        start(run, parts, rounds=2)
    assert parts.seen == {(threading.main_thread().name, 3), (threading.main_thread().name, 6)}
    assert not Rewards((Weighted(Here()),)).elsewhere
    assert not Rewards((Weighted(Elsewhere()), Weighted(KlReward("model")))).elsewhere
    assert Rewards((Weighted(Elsewhere()),)).elsewhere


def test_an_error_shows_as_without_a_thread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All candidates are on disk, the message is the reward's; it was said at once, and nothing was asked meanwhile."""
    parts = Elsewhere(fail_at="score 6")
    with (
        Run(tmp_path / "run", "model") as run,
        pytest.raises(UserError, match="reward 'length' raised ConnectionError"),
    ):
        start(run, parts)
    here = tmp_path / "run" / "rounds" / "0001"
    assert [len(table.read_candidates(path, CODEC)) for path in sorted((here / "candidates").iterdir())] == [6, 6, 3]
    assert "tried again when sampling is done" in caplog.text
    assert not (here / "scoring").exists()
    with Run(tmp_path / "run", "model") as run:
        start(run, Elsewhere())
    with Run(tmp_path / "whole", "model") as run:
        start(run, Counter())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


class Once(Elsewhere):
    """The first request fails, as a network's may."""

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        if not self.threads:
            self.threads.add("failed")
            raise ConnectionError("once")
        return super().__call__(candidates)


def test_what_failed_in_the_thread_is_asked_once_more(tmp_path: Path) -> None:
    with Run(tmp_path / "run", "model") as run:
        start(run, Once(), rounds=1)
    with Run(tmp_path / "whole", "model") as run:
        start(run, Counter(), rounds=1)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


class Stopped(Elsewhere):
    """A signal comes while shard 1 is sampled and shard 0 is being scored, which takes until the signal came."""

    def sample(self, policy: Any, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        found = super().sample(policy, prompts, k, seed)
        if self.shards == 2:
            signal.raise_signal(signal.SIGTERM)
            self.scored[0].set()
        return found

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        assert self.scored[0].wait(PATIENCE)
        return super().__call__(candidates)


def test_a_signal_finishes_the_shards_at_hand_and_the_run_resumes(tmp_path: Path) -> None:
    with Run(tmp_path / "run", "model") as run, interrupt.handled(), pytest.raises(Interrupted):
        start(run, Stopped())
    here = tmp_path / "run" / "rounds" / "0001"
    assert [path.name for path in sorted((here / "candidates").iterdir())] == ["00000.parquet", "00001.parquet"]
    assert (here / "scoring" / "00000.json").exists()
    rest = Elsewhere()
    with Run(tmp_path / "run", "model") as run:
        start(run, rest)
    assert sum(call.startswith("sample model") or "sample" in call for call in rest.calls) == 1 + 3
    with Run(tmp_path / "whole", "model") as run:
        start(run, Counter())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


class Hanging(Elsewhere):
    """Sampling dies by the second Ctrl-C while a request hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()

    def sample(self, policy: Any, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        if self.shards == 1:
            raise KeyboardInterrupt
        return super().sample(policy, prompts, k, seed)

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        self.over.wait()
        return super().__call__(candidates)


def test_a_second_interrupt_does_not_wait_for_a_request_that_hangs(tmp_path: Path) -> None:
    parts = Hanging()
    with Run(tmp_path / "run", "model") as run, pytest.raises(KeyboardInterrupt):
        start(run, parts)
    parts.over.set()


def test_a_mended_reward_scores_anew_in_the_thread_too(tmp_path: Path) -> None:
    parts = Elsewhere(fail_at="score 3")
    with Run(tmp_path / "run", "model") as run, pytest.raises(UserError):
        start(run, parts)
    mended = Elsewhere()
    mended.version = "2"  # type: ignore[attr-defined]
    with Run(tmp_path / "run", "model") as run:
        start(run, mended, rounds=1)
    assert [call for call in mended.calls if call.startswith("score")] == ["score 6", "score 6", "score 3"]


def beside_of(folder: Path, number: int) -> dict[str, Any]:
    return files.read_json(folder / "rounds" / f"{number:04d}" / "metrics.json")


def test_a_recipe_says_so_of_its_functions(work: Path, tiny: Path) -> None:
    """The same weights with the key and without; the key may change between two sessions."""
    outcomes = []
    for elsewhere in (False, True):
        recipe = write_recipe(work, tiny, reward=[{"use": "my_rewards.py:vowels", "elsewhere": elsewhere}])
        out = work / f"run-{elsewhere}"
        assert call("run", recipe, "--out", out, "--set", "rounds=1").exit_code == 0
        found = [path for path in sorted(out.rglob("*.safetensors")) if "best" not in path.parts]
        outcomes.append([path.read_bytes() for path in found])
        assert ("time/elsewhere_s" in beside_of(out, 1)) == elsewhere
    assert outcomes[0] == outcomes[1]
    assert call("run", recipe, "--out", work / "run-False").exit_code == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward": [{"use": "vader", "elsewhere": True}]}, "vader works here, where the policy is"),
        ({"reward": [{"use": "my_rewards.py:vowels", "elsewhere": True}, "vader"]}, "elsewhere and vader is not"),
        ({"reward": [{"use": "my_rewards.py:vowels", "elsewhere": True}], "kl_coefficient": 0.1}, "kl_coefficient: is"),
        ({"evaluate": {"monitor": [{"use": "my_rewards.py:vowels", "elsewhere": True}]}}, "does nothing there"),
    ],
)
def test_what_cannot_be_elsewhere_is_refused(changes: dict[str, Any], said: str, work: Path, tiny: Path) -> None:
    result = call("run", write_recipe(work, tiny, **changes), "--out", work / "run", "--dry-run")
    assert result.exit_code == 2
    assert said in result.stderr
