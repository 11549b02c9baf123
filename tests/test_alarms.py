"""Alarms on figures made by hand: each rings where it should, and only there."""

from __future__ import annotations

from typing import Any

import pytest

from raftune.alarms import Limits, raised

QUIET = {
    "heldout/reward_mean": 0.0,
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
    history = rows({"other": 3.0}, {"reward_mean": 1.0, "other": 1.0})
    (line,) = raised(history, ["heldout/monitor", "heldout/other"])
    assert "other fell by 2" in line


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
