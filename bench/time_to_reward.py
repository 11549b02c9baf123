"""Training seconds to a given held-out reward: RAFT, TRL's GRPO and RLOO, each at its best of three learning rates.

The recipe is the quickstart's (SmolLM2-135M-Instruct, VADER, 24 prompts × 8 answers × 40 tokens a step), the same
prompts in the same order, the same reward code and the same held-out evaluation for all (``bench/peers.py`` says what
is equal and what is each library's own). Each method runs on seed 0 at three learning rates; the one that is first at
the target, or else ends with the highest held-out reward, runs on the other seeds. Peers' rates are constant. A peer
that is not there after FACTOR × the median of our seconds is stopped: its figure is a lower bound, and so is what
follows from it.

Seconds are those of training; evaluation is aside on all sides (another process, while training waits), after every
round and every step; with ``--every`` more, of a peer's steps between an evaluation below the target and one at it the
first one counts. Memory is the process's peak while training; GRPO and RLOO have 48
samples in the model at once and accumulate.

    python bench/time_to_reward.py --cpus 0 --cpus 1 --threads 1    # two runs at a time, each on a core of its own

Every run is kept below ``--out`` and not run again; a peer that was killed in training begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import machine
from paired import RESULTS, ROOT
from ratios import Reached, reached

from raftune import files

PEERS = ("grpo", "rloo")
REWARD = "heldout/reward_mean"


@dataclass(frozen=True)
class Job:
    """One run."""

    method: str
    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        return f"{self.method}-{self.learning_rate:g}-{self.seed}"


class Campaign:
    """The runs below a folder, and what they say."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.places: queue.Queue[str | None] = queue.Queue()
        for cpus in options.cpus or [None]:
            self.places.put(cpus)

    def run(self, job: Job, cap: float | None = None) -> dict[str, Any]:
        """The result of a job, done now if it is not there; on the first free place."""
        place = self.places.get()
        try:
            folder = self.options.out / job.name
            print(
                f"{job.name}: {'kept' if (folder / 'result.json').exists() else 'begins'}", file=sys.stderr, flush=True
            )
            command = [*(["taskset", "-c", place] if place else []), *self.command(job, cap)]
            threads = {} if self.options.threads is None else {"OMP_NUM_THREADS": str(self.options.threads)}
            with (self.options.out / f"{job.name}.log").open("a") as log:
                env = {**os.environ, "HF_HUB_OFFLINE": "1", **threads}
                code = subprocess.run(command, env=env, stdout=log, stderr=log).returncode
            if code:
                sys.exit(f"{job.name}: failed; see {log.name}")
            return kept(files.read_json(folder / "result.json"))
        finally:
            self.places.put(place)

    def command(self, job: Job, cap: float | None) -> list[str]:
        options = self.options
        command = [sys.executable, str(ROOT / "bench" / "peers.py"), "--recipe", options.recipe]
        command += ["--method", job.method, "--seed", str(job.seed), "--out", str(options.out / job.name)]
        for change in options.set:
            command += ["--set", change]
        command += ["--learning-rate", str(job.learning_rate), "--until", str(options.target)]
        if job.method == "raft":
            return [*command, "--steps", str(options.rounds), "--evaluate-every", "1"]
        assert cap is not None
        command += ["--steps", str(options.steps), "--minutes", f"{cap / 60:.4f}"]
        return [*command, "--evaluate-every", str(options.every), "--trl", "lr_scheduler_type=constant"]

    def all(self, jobs: Sequence[Job], cap: float | None = None) -> list[dict[str, Any]]:
        """The results of some jobs, as many at a time as there are places."""
        with ThreadPoolExecutor(self.places.qsize()) as pool:
            return list(pool.map(lambda job: self.run(job, cap), jobs))

    def tuned(self, methods: Sequence[str], cap: float | None = None) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Each method's best rate on the first seed, and all runs, those of the other seeds at that rate."""
        options = self.options
        firsts = self.all([Job(method, 0, rate) for method in methods for rate in options.rates], cap)
        of = {method: [one for one in firsts if one["method"] == method] for method in methods}
        best = {method: best_rate(of[method], options.target) for method in methods}
        later = range(1, options.seeds)
        return best, [*firsts, *self.all([Job(m, seed, best[m]) for m in methods for seed in later], cap)]


def kept(result: dict[str, Any]) -> dict[str, Any]:
    """What the page needs of a run."""
    keys = ("method", "learning_rate", "seed", "step_seconds", "samples", "peak_bytes", "versions", "task", "own")
    heldout = {step: figures[REWARD] for step, figures in result["heldout"].items()}
    return {key: result[key] for key in keys} | {"heldout": heldout}


def curve(run: dict[str, Any]) -> dict[int, float]:
    """Held-out reward by step; 0: before training."""
    return {int(step): value for step, value in run["heldout"].items()}


def arrived(run: dict[str, Any], target: float) -> Reached:
    """When a run was at the target."""
    return reached(target, curve(run), run["step_seconds"], run["samples"] / len(run["step_seconds"]))


def best_rate(runs: Sequence[dict[str, Any]], target: float) -> float:
    """Of runs on one seed: the rate of the first at the target; if none was, of the highest held-out reward at its end.
    The smaller of equals."""

    def rank(run: dict[str, Any]) -> tuple[bool, float, float]:
        when, rewards = arrived(run, target), curve(run)
        return when.bound, -rewards[max(rewards)] if when.bound else when.seconds, run["learning_rate"]

    return min(runs, key=rank)["learning_rate"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "quickstart.yaml"))
    parser.add_argument("--target", type=float, default=0.5, help="held-out reward")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--factor", type=float, default=12.0, help="peers may take so many times our median seconds")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-5, 1e-4, 2e-4], help="of each method")
    parser.add_argument("--rounds", type=int, default=10, help="ours, at most")
    parser.add_argument("--steps", type=int, default=1000, help="a peer's, at most")
    parser.add_argument("--every", type=int, default=1, help="a peer is evaluated after every so manieth step")
    parser.add_argument("--set", nargs="*", default=["evaluate.k=4"], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--threads", type=int, help="threads of every run")
    parser.add_argument(
        "--cpus", action="append", help="cores of a run, like 0 or 0,1; given twice: two runs at a time"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "time-to-reward")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    campaign, target = Campaign(options), options.target
    best, ours = campaign.tuned(["raft"])
    when = [arrived(one, target) for one in ours if one["learning_rate"] == best["raft"]]
    if any(one.bound for one in when):
        sys.exit(f"ours did not reach {target} within {options.rounds} rounds on every seed; set another --target")
    if any(one.seconds == 0 for one in when):
        sys.exit(f"the initial model stands at {target} already; set a higher --target")
    cap = options.factor * median(one.seconds for one in when)
    theirs, others = campaign.tuned(PEERS, cap)
    best, runs = best | theirs, [*ours, *others]
    keep(options, cap, best, runs)
    for one in runs:
        line = {key: one[key] for key in ("method", "learning_rate", "seed")}
        print(json.dumps(line | asdict(arrived(one, target))), flush=True)


def keep(options: argparse.Namespace, cap: float, best: dict[str, float], runs: list[dict[str, Any]]) -> None:
    """For the page, beside the other comparisons of this machine."""
    here = {"machine": machine.name(), "about": machine.description(), "when": time.strftime("%Y-%m-%d")}
    asked = {key: getattr(options, key) for key in ("target", "factor", "every", "set", "threads", "cpus")}
    record = here | asked | {"recipe": Path(options.recipe).name, "cap_seconds": cap, "best": best, "runs": runs}
    files.write_json(RESULTS / machine.slug(here["machine"]) / "time_to_reward.json", record)


if __name__ == "__main__":
    main()
