"""Alarms on figures made by hand: each rings where it should, and only there."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raftune.alarms import Limits, raised
from raftune.build import Parts
from raftune.errors import UserError
from raftune.experiment import Experiment
from raftune.recipe import parse
from raftune.show import Show

QUIET = {
    "heldout/reward_mean": 0.0,
    "heldout/reward_se": 0.1,
    "heldout/monitor": 1.0,
    "heldout/monitor_se": 0.1,
    "chosen/distinct_2": 0.9,
    "heldout/length_mean": 40.0,
    "heldout/kl": 0.0,
}


def rows(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"round": n, **QUIET, **{f"heldout/{k}" if "/" not in k else k: v for k, v in c.items()}}
        for n, c in enumerate(changes)
    ]


def kinds(*changes: dict[str, Any], limits: Limits = Limits()) -> list[str]:
    return [line.partition(":")[0] for line in raised(rows(*changes), ["heldout/monitor"], limits)]


def test_a_run_that_stands_still_is_quiet() -> None:
    assert kinds({}, {}, {}) == []
    assert kinds({}) == []
    assert raised([], []) == []


@pytest.mark.parametrize(
    ("reward", "monitor", "rings"),
    [
        (1.0, 0.5, True),
        (1.0, 0.75, False),  # within twice the standard error of the difference, 0.28
        (1.0, 0.7, True),
        (-1.0, 0.0, False),  # both fall: a bad round, no hack
        (1.0, 1.5, False),
        (0.15, 0.5, True),
        (0.13, 0.5, False),  # within the standard error of the difference, 0.14
    ],
)
def test_the_monitor_rings_where_it_parts_from_the_reward(reward: float, monitor: float, rings: bool) -> None:
    assert kinds({}, {"reward_mean": reward, "monitor": monitor}) == ["monitor"] * rings


def test_the_monitor_is_compared_with_its_best_round() -> None:
    up, down = {"reward_mean": 0.5, "monitor": 2.0}, {"reward_mean": 0.9, "monitor": 1.5}
    assert kinds({}, up) == []
    assert kinds({}, up, down) == ["monitor"]  # still above round 0
    assert kinds({}, up, {**down, "reward_mean": 0.4}) == []


def test_two_monitors_ring_apart() -> None:
    history = rows({"other": 3.0, "other_se": 0.1}, {"reward_mean": 1.0, "other": 1.0, "other_se": 0.1})
    (line,) = raised(history, ["heldout/monitor", "heldout/other"])
    assert "other fell by 2" in line


def test_without_a_standard_error_a_fall_may_be_luck() -> None:
    assert raised(rows({"other": 3.0}, {"reward_mean": 1.0, "other": 1.0}), ["heldout/other"]) == []


def test_diversity_is_that_of_the_first_round() -> None:
    assert kinds({}, {"chosen/distinct_2": 0.55}) == []
    assert kinds({}, {}, {"chosen/distinct_2": 0.53}) == ["diversity"]
    assert kinds({}, {"chosen/distinct_2": 0.8}, limits=Limits(diversity=0.9)) == ["diversity"]


@pytest.mark.parametrize(("length", "rings"), [(59, False), (61, True), (27, False), (26, True)])
def test_length_drifts_both_ways(length: float, rings: bool) -> None:
    assert kinds({}, {"length_mean": float(length)}) == ["length"] * rings


def test_kl_is_per_token_and_round() -> None:
    assert kinds({}, {"kl": 3.9}) == []
    assert kinds({}, {"kl": 4.1}) == ["kl"]
    assert kinds({}, {"kl": 3.9}, {"kl": 7.8}) == []
    history = rows({}, {"kl": 7.9})
    history[1]["round"] = 2  # evaluated every second round
    assert raised(history, []) == []


def test_what_was_not_measured_in_the_last_round_does_not_ring() -> None:
    history = [*rows({}, {"reward_mean": 1.0, "monitor": 0.0, "kl": 99.0}), {"round": 2, "chosen/distinct_2": 0.9}]
    assert raised(history, ["heldout/monitor"]) == []


REWARDS = """
def letter_e(completions):
    return [sum(c in "e " for c in text) / 24 for text in completions]

def letters(completions):
    return [len(set(text)) / 20 for text in completions]

def short(completions):
    return [-float(len(text)) for text in completions]
"""
LOUD = {"diversity": 0.0, "length": 1e9, "kl": 1e9}  # all but the monitor's, which no recipe can turn off, are silent


def run(folder: Path, model: Path, reward: str, **changes: Any) -> list[dict[str, Any]]:
    """Some rounds of a tiny model that is tuned hard on a reward which can be hacked."""
    (folder / "mine.py").write_text(REWARDS)
    prompts = [json.dumps({"prompt": f"The film number {i}"}) for i in range(24)]
    (folder / "prompts.jsonl").write_text("\n".join(prompts))
    raw = {
        "model": str(model),
        "prompts": {"path": "prompts.jsonl", "heldout": 8},
        "reward": f"mine.py:{reward}",
        "sample": {"prompts_per_round": 12, "k": 16, "max_new_tokens": 24},
        "tune": {"learning_rate": 5e-2, "epochs": 10},
        "rounds": 4,
        **changes,
    }
    experiment = Experiment.open(Parts(parse(raw), folder), folder / "run")
    with experiment.run:
        return list(experiment.rounds())


def rung(history: list[dict[str, Any]]) -> set[str]:
    return {line.partition(":")[0] for row in history for line in row.get("alarms", [])}


def test_a_hacked_reward_raises_the_monitors_alarm(tiny: Path, tmp_path: Path) -> None:
    monitor = {"evaluate": {"monitor": "mine.py:letters", "k": 4}}
    history = run(tmp_path, tiny, "letter_e", alarms=LOUD, **monitor)
    assert history[-1]["heldout/reward_mean"] > history[0]["heldout/reward_mean"]
    assert history[-1]["heldout/monitor"] < history[0]["heldout/monitor"]
    assert rung(history) == {"monitor"}
    assert not history[0].get("alarms")
    on_disk = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row.get("alarms") for row in on_disk] == [row.get("alarms") for row in history]


def test_a_collapse_raises_the_alarm_of_diversity(tiny: Path, tmp_path: Path) -> None:
    history = run(tmp_path, tiny, "letter_e", alarms={**LOUD, "diversity": 0.6}, rounds=7)
    assert history[-1]["chosen/distinct_2"] < 0.6 * history[1]["chosen/distinct_2"]
    assert rung(history) == {"diversity"}


def test_a_reward_for_brevity_raises_the_alarm_of_length(tiny: Path, tmp_path: Path) -> None:
    history = run(tmp_path, tiny, "short", alarms={**LOUD, "length": 1.5})
    assert history[-1]["heldout/length_mean"] < history[0]["heldout/length_mean"] / 1.5
    assert rung(history) == {"length"}


def test_a_leap_raises_the_alarm_of_kl(tiny: Path, tmp_path: Path) -> None:
    history = run(tmp_path, tiny, "letter_e", alarms={**LOUD, "kl": 0.1}, rounds=2)
    assert rung(history) == {"kl"}


def test_gentle_tuning_raises_none(tiny: Path, tmp_path: Path) -> None:
    monitor = {"evaluate": {"monitor": "mine.py:letters"}}
    assert rung(run(tmp_path, tiny, "letter_e", tune={"learning_rate": 1e-5}, rounds=2, **monitor)) == set()


def test_the_terminal_shows_alarms() -> None:
    screen = Console(file=io.StringIO(), width=200)
    show = Show(screen)
    show.round({"round": 1, "sample/reward_mean": 0.5})
    show.round({"round": 2, "sample/reward_mean": 0.6, "alarms": ["kl: [bold] 3 nats"]})
    said = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said[-1] == " ! round 2, kl: [bold] 3 nats"
    assert len(said) == 3


@pytest.mark.parametrize("name", ["reward_mean", "kl", "best_of_2", "reward_se", "length_mean"])
def test_a_monitor_is_not_called_like_another_figure(name: str) -> None:
    """It would be written over it, and `best` would go by what only watches."""
    raw = {"model": "m", "prompts": "p.jsonl", "reward": "length:1-2"}
    raw["evaluate"] = {"monitor": [{"use": "repetition", "name": name}]}
    with pytest.raises(UserError, match=rf"evaluate.monitor: '{name}' is the name of another"):
        _ = Parts(parse(raw)).monitors
