"""A folder into which another process keeps writing candidates, and the command that learns from them as they come."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_cli import call, process, work, write_recipe
from test_kill import until
from test_sources import rows_of

__all__ = ["work"]
SHARDS = 3


def shard(number: int) -> str:
    """Two prompts, three answers each; the prompts are other ones than those held out."""
    rows = [
        {"prompt": f"Shard {number} asks {ask}", "output": "aeiou" * (1 + (number + ask + answer) % 3), "source": "ann"}
        for ask in range(2)
        for answer in range(3)
    ]
    return "\n".join(map(json.dumps, rows))


def write(folder: Path, name: str, text: str) -> None:
    """As a careful writer does: whole or not at all."""
    part = folder / f".{name}.part"
    part.write_text(text)
    part.replace(folder / name)


def write_all(folder: Path, pause: float = 0.0) -> None:
    for number in range(SHARDS):
        time.sleep(pause)
        write(folder, f"{number:03d}.jsonl", shard(number))
    (folder / "DONE").touch()


@pytest.fixture
def incoming(work: Path) -> Path:
    (work / "in").mkdir()
    (work / "held.jsonl").write_text("\n".join((work / "prompts.jsonl").read_text().splitlines()[2:4]))
    return work / "in"


def recipe(work: Path, tiny: Path, **changes: Any) -> Path:
    return write_recipe(
        *(work, tiny),
        **{
            "prompts": {"path": "held.jsonl", "heldout": "held.jsonl"},
            "sample": {"max_new_tokens": 8, "shard": 1},
            "keep": "all",
            "rounds": 9,
            **changes,
        },
    )


def watch(incoming: Path, recipe: Path, out: str, *more: object) -> list[object]:
    return ["watch", incoming, "--recipe", recipe, "--out", incoming.parent / out, *more]


def taken(run: Path) -> list[list[str]]:
    return [list(json.loads(path.read_text())) for path in sorted(run.glob("rounds/*/shards.json"))]


def test_rounds_come_as_shards_do(work: Path, incoming: Path, tiny: Path) -> None:
    writer = threading.Thread(target=write_all, args=(incoming, 0.5))
    writer.start()
    for name in (".hidden.jsonl", "x.jsonl.part", "x.tmp", "notes.txt"):
        (incoming / name).write_text("not for us")
    result = call(*watch(incoming, recipe(work, tiny), "run"))
    writer.join()
    assert result.exit_code == 0, result.output
    assert "DONE is there and every shard was used" in result.output
    assert taken(work / "run") == [["000.jsonl"], ["001.jsonl"], ["002.jsonl"]]
    rows = rows_of(work / "run")
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert all(row["sample/candidates"] == 6 and row["chosen/candidates"] == 2 for row in rows[1:])
    assert all(row["chosen/reward_mean"] > row["sample/reward_mean"] for row in rows[1:])
    assert all("heldout/reward_mean" in row for row in rows)
    write(incoming, "003.jsonl", shard(3))
    again = call(*watch(incoming, recipe(work, tiny), "run"))
    assert again.exit_code == 0
    assert taken(work / "run")[3:] == [["003.jsonl"]]


def test_killed_and_resumed_ends_as_undisturbed(work: Path, incoming: Path, tiny: Path) -> None:
    """Killed within a round, while files that sort before the one it took go on coming."""
    slow = recipe(work, tiny, reward="my_rewards.py:slow")
    write(incoming, "001.jsonl", shard(1))
    running = process(*watch(incoming, slow, "killed"))
    came = until((work / "killed" / "rounds" / "0001" / "candidates" / "00000.parquet").exists, running)
    running.kill()
    running.communicate()
    assert came
    for number in (2, 0):
        write(incoming, f"{number:03d}.jsonl", shard(number))
    (incoming / "DONE").touch()
    last = call(*watch(incoming, slow, "killed"))
    assert last.exit_code == 0, last.output
    assert taken(work / "killed") == [["001.jsonl"], ["000.jsonl"], ["002.jsonl"]]
    same = work / "in the same order"
    same.mkdir()
    for place, number in enumerate((1, 0, 2)):
        write(same, f"{place}.jsonl", shard(number))
    (same / "DONE").touch()
    assert call(*watch(same, slow, "undisturbed")).exit_code == 0

    def weights(name: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted((work / name).glob("rounds/*/policy/model.safetensors"))]

    assert weights("killed") == weights("undisturbed")
    assert len(weights("killed")) == 3


def test_it_ends_when_idle_or_at_the_last_round(work: Path, incoming: Path, tiny: Path) -> None:
    write(incoming, "a.jsonl", shard(0))
    few = call(*watch(incoming, recipe(work, tiny), "idle", "--shards", 2, "--idle", 0.5))
    assert few.exit_code == 0, few.output
    assert "no new shard in" in few.output
    assert "1 of the 2 shards of a round are there" in few.output
    assert taken(work / "idle") == []
    write(incoming, "b.jsonl", shard(1))
    one = call(*watch(incoming, recipe(work, tiny, rounds=1), "one"))
    assert one.exit_code == 0
    assert taken(work / "one") == [["a.jsonl"]]
    (incoming / "STOP").touch()
    both = call(*watch(incoming, recipe(work, tiny), "both", "--shards", 3))
    assert both.exit_code == 0, both.output
    assert taken(work / "both") == [["a.jsonl", "b.jsonl"]]  # what is left when nothing more comes


def test_a_file_that_grows_is_waited_for_and_a_broken_one_is_named(work: Path, incoming: Path, tiny: Path) -> None:
    whole = shard(0)
    (incoming / "a.jsonl").write_text(whole[:40])
    (incoming / "DONE").touch()

    def grow() -> None:
        for end in range(60, len(whole) + 20, 20):  # never still for two seconds; where a line ends it would parse
            time.sleep(0.02)
            cut = whole[:end]
            if end >= len(whole) or not cut.endswith("}"):
                (incoming / "a.jsonl").write_text(cut + ("" if end >= len(whole) else "\n{"))

    writer = threading.Thread(target=grow)
    writer.start()
    result = call(*watch(incoming, recipe(work, tiny), "grown"))
    writer.join()
    assert result.exit_code == 0, result.output
    assert rows_of(work / "grown")[1]["sample/candidates"] == 6
    (incoming / "b.jsonl").write_text(whole[:40])
    broken = call(*watch(incoming, recipe(work, tiny), "grown"))
    assert broken.exit_code == 2
    assert "b.jsonl line 1: not JSON" in broken.output


def test_what_a_round_took_must_stay(work: Path, incoming: Path, tiny: Path) -> None:
    write(incoming, "a.jsonl", shard(0))
    command = watch(incoming, recipe(work, tiny, reward="my_rewards.py:vowels"), "run")
    stopped = call(*command, "--set", "select.rule=above:1000")
    assert stopped.exit_code == 2
    (work / "run" / "rounds" / "0001" / "prompts.parquet").unlink()
    write(incoming, "a.jsonl", shard(1))
    result = call(*command, "--set", "select.rule=above:1000")
    assert result.exit_code == 2
    assert "a.jsonl: round 1 took it, and it is gone or changed; put it back" in result.output


def test_a_signal_while_it_waits(work: Path, incoming: Path, tiny: Path) -> None:
    def stop() -> None:
        while not (work / "run" / "rounds" / "0000" / "metrics.json").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    result = call(*watch(incoming, recipe(work, tiny), "run"))
    assert result.exit_code == 3, result.output
    assert "stopped by SIGINT; the same command resumes" in result.output


def test_rules_for_prompts_hold_for_shards(work: Path, incoming: Path, tiny: Path) -> None:
    rows = [
        {"prompt": "The film number 3", "output": "aei"},
        {"prompt": "x" * 90, "output": "aei"},
        *({"prompt": "good", "output": "aei" * n, "label": 7} for n in (1, 2)),
    ]
    write(incoming, "a.jsonl", "\n".join(map(json.dumps, rows)))
    (incoming / "DONE").touch()
    prompts = {"path": "held.jsonl", "heldout": "held.jsonl", "max_tokens": 50}
    result = call(*watch(incoming, recipe(work, tiny, prompts=prompts), "run"))
    assert result.exit_code == 0, result.output
    assert rows_of(work / "run")[1]["sample/candidates"] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample": {"sources": {"a": {"use": "policy", "k": 1}}}}, "sample.sources: watch takes its candidates"),
        ({}, "no such folder"),
    ],
)
def test_what_cannot_be_watched(changes: dict[str, Any], said: str, work: Path, tiny: Path) -> None:
    result = call(*watch(work / "absent", recipe(work, tiny, **changes), "run"))
    assert result.exit_code == 2
    assert said in result.output


def test_ids_that_are_two_prompts_in_one_round_are_refused(work: Path, incoming: Path, tiny: Path) -> None:
    """Else the second's answers would be taken for answers to the first."""
    for name in ("a", "b"):
        row = {"prompt_id": 0, "prompt": f"Shard {name} asks", "output": name}
        write(incoming, f"{name}.jsonl", json.dumps(row))
    (incoming / "DONE").touch()
    asked = watch(incoming, recipe(work, tiny, rounds=1), "run", "--shards", 2)
    refused = call(*asked)
    assert refused.exit_code == 2
    assert "b.jsonl line 1: the prompt_id '0' is another prompt's in the same round" in refused.stderr
    write(incoming, "b.jsonl", json.dumps({"prompt_id": 1, "prompt": "Shard b asks", "output": "b"}))
    changed = call(*asked)
    assert changed.exit_code == 2
    assert f"delete {work / 'run' / 'rounds' / '0001'}" in changed.stderr
    (work / "run" / "rounds" / "0001" / "shards.json").unlink()
    assert call(*asked).exit_code == 0
