"""What was aimed at, and what the kept results say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paired import OURS
from ratios import Spread, ratios, short, slower, spread
from time_to_reward import PEERS, arrived

Runs = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Aim:
    """A figure that was aimed at: ``of`` a comparison's case, against a ``peer`` or a limit."""

    what: str
    comparison: str
    case: str
    of: str
    peer: str
    bound: float
    at_most: bool = False

    def verdict(self, found: Spread | None) -> str:
        if found is None:
            return "not measured"
        if found.bound and found.middle < self.bound:
            return "open"
        return (
            "reached" if (found.middle <= self.bound) is self.at_most or found.middle == self.bound else "not reached"
        )

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {short(self.bound)}"


SHORT, MANY, LONG = (
    "43-token prompts, K=16, 64 new, 8 prompts",
    "43-token prompts, K=16, 64 new, 16 prompts",
    "256-token prompts, K=32, 48 new, 8 prompts",
)
TUNE, ROUND = "96 outputs, batch size 8", "24 prompts × 8 answers × 40 tokens"
AIMS = (
    *(Aim(f"sampler over `generate`, {case}", "sample", case, "ratio", "generate", 3) for case in (SHORT, MANY)),
    Aim(f"sampler over `generate`, {LONG}", "sample", LONG, "ratio", "generate", 8),
    *(Aim(f"sampler over vLLM, {case}", "sample", case, "ratio", "vLLM", 1.5) for case in (SHORT, MANY)),
    Aim(f"sampler over vLLM, {LONG}", "sample", LONG, "ratio", "vLLM", 2.3),
    Aim("tuning over `SFTTrainer` as it comes", "tune", TUNE, "ratio", "SFTTrainer", 1.8),
    Aim("tuning, share of the model's own matmul limit", "tune", TUNE, "limit", "limit", 0.7),
    Aim("round over its matmuls' time at the model's own rate", "round", ROUND, "limit", "limit", 1.25, True),
    Aim("round over its matmuls' time at the best rate of any", "round", ROUND, "limit", "at_peak", 1.25, True),
    Aim("memory of a round over that of a GRPO step", "round", ROUND, "memory", "GRPO", 0.4, True),
    *(
        Aim(f"seconds to the reward, {one.upper()}'s over ours", "time_to_reward", "", "ratio", one, 10)
        for one in PEERS
    ),
    Aim("memory on the way to the reward, over GRPO's", "time_to_reward", "", "memory", "grpo", 0.4, True),
)


def measured(aim: Aim, record: dict[str, Any]) -> Spread | None:
    """What a record says of an aim; None where it does not."""
    if aim.comparison == "time_to_reward":
        return race(record, aim.peer)[aim.of]
    runs = record["cases"].get(aim.case, {"runs": {}})["runs"]
    if OURS not in runs:
        return None
    if aim.of == "limit":
        return against_limit(runs[OURS], record["compared"], aim.peer)
    if aim.peer not in runs:
        return None
    return memory(runs[OURS], runs[aim.peer]) if aim.of == "memory" else ratio(record, runs, aim.peer)


def of(runs: Runs, key: str) -> list[float]:
    return [run[key] for run in runs]


def ratio(record: dict[str, Any], runs: dict[str, Runs], peer: str) -> Spread:
    key = record["compared"]
    return spread(ratios(of(runs[OURS], key), of(runs[peer], key), record["smaller_is_better"]))


def memory(ours: Runs, peer: Runs) -> Spread:
    return spread(ratios(of(ours, "peak_gb"), of(peer, "peak_gb"), smaller_is_better=False))


def against_limit(ours: Runs, key: str, limit: str) -> Spread | None:
    """A rate's share of its limit, or seconds as a multiple of theirs."""
    return spread([run[key] / run[limit] for run in ours]) if limit in ours[0] else None


def race(record: dict[str, Any], peer: str) -> dict[str, Spread]:
    """How a peer at its best rate compares, seed by seed."""
    ours, theirs = finalists(record, "raft"), finalists(record, peer)
    when = [[arrived(run, record["target"]) for run in runs] for runs in (ours, theirs)]
    peaks = [[run["peak_bytes"] for run in runs] for runs in (ours, theirs)]
    return {"ratio": slower(*when), "memory": spread([a / b for a, b in zip(*peaks, strict=True)])}


def finalists(record: dict[str, Any], method: str) -> Runs:
    """The runs of a method at its best learning rate, by seed."""
    best = record["best"].get(method)
    found = [run for run in record["runs"] if run["method"] == method and best in {None, run["learning_rate"]}]
    return sorted(found, key=lambda run: run["seed"])
