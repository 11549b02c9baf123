"""Text stages by themselves on SmolLM2-135M: seconds and peak memory of a LoRA round, of optimisers, of checkpointing.

    python stages.py [--source DIR] [--cpu] CASE …

prints one JSON line a case and turn, each case in a process of its own. ``--source``: the ``src`` of another version,
taken in turn with this one (A B A B). ``--cpu``: the processor's time instead of the clock's (OMP_NUM_THREADS=1), for a
machine that is not idle. Seconds of a round leave out the first, which warms up.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from paired import openings, real_model

LORA = {"learning_rate": 2e-5, "lora": True}
CASES: dict[str, dict[str, Any]] = {
    "lora round": {"rounds": True, "tune": LORA},
    "full round": {"rounds": True, "tune": {"learning_rate": 2e-5}},
    "24 outputs": {"steps": {"rows": 24, "length": 40}, "tune": {}},
    "32 bits": {"steps": {"rows": 24, "length": 40}, "tune": {}},
    "8 bits": {"steps": {"rows": 24, "length": 40}, "tune": {"optimizer_bits": 8}},
    "8 × 512": {"steps": {"rows": 16, "length": 512}, "tune": {}},
    "8 × 512, checkpointing": {"steps": {"rows": 16, "length": 512}, "tune": {"gradient_checkpointing": True}},
    "8 × 512, LoRA": {"steps": {"rows": 16, "length": 512}, "tune": LORA},
    "8 × 512, LoRA, checkpointing": {
        "steps": {"rows": 16, "length": 512},
        "tune": {**LORA, "gradient_checkpointing": True},
    },
}


def learner(options: dict[str, Any]) -> Any:
    from raftune.tune.lora import Lora
    from raftune.tune.text import TextLearner

    given = {key: value for key, value in options.items() if key != "lora"}
    return TextLearner(**given, lora=Lora() if options.get("lora") else None)


def rounds(tune: dict[str, Any], clock: Any) -> dict[str, float]:
    """The second of two rounds of 24 × K=8 × 24 tokens with the KL-shaped reward, and its evaluation's KL."""
    from raftune import Prompt, Run, TextSampler, Vader, Weighted, draw, raft, rewards
    from raftune.likelihood import logprobs
    from raftune.reward.kl import KlReward
    from raftune.score import Rewards

    times: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            start = clock()
            done = work(*args, **options)
            times[name] = times.get(name, 0.0) + clock() - start
            return done

        return run

    prompts = [Prompt(str(number), text) for number, text in enumerate(openings())]
    shaped = Rewards((*rewards(Vader()).members, Weighted(KlReward(real_model()), -0.1)))
    sampler, tuner = TextSampler(max_new_tokens=24), learner(tune)
    for part, verb in ((sampler, "sample"), (tuner, "tune")):
        object.__setattr__(part, verb, timed(verb, getattr(part, verb)))

    class Timed(Rewards):
        def __call__(self, *args: Any, **options: Any) -> Any:
            return timed("score", super().__call__)(*args, **options)

    with tempfile.TemporaryDirectory() as scratch, Run(Path(scratch) / "run", real_model()) as run:
        loop = raft(run, lambda n: draw(prompts, n, 24, seed=0), sampler, Timed(shaped.members), tuner, 8, rounds=2)
        next(loop)
        times.clear()
        start = clock()
        scored = next(loop).scored
        timed("evaluate", logprobs)(real_model(), [one.candidate for one in scored][:48])
        return {"seconds": clock() - start, **times}


def steps(tune: dict[str, Any], clock: Any, rows: int, length: int) -> dict[str, float]:
    """A whole tuning of ``rows`` outputs, eight a step, and the share of it that is steps."""
    import random

    from raftune.tune.session import Session

    pick, spent = random.Random(0), [0.0]

    def ids(count: int) -> list[int]:
        return [pick.randrange(100, 40000) for _ in range(count)]

    run = Session.run

    def watched(self: Any, update: Any) -> None:
        start = clock()
        run(self, update)
        spent[0] += clock() - start

    Session.run = watched  # type: ignore[method-assign]
    tuner = learner({"learning_rate": 2e-5, "batch_tokens": 8 * length * 2, **tune})
    with tempfile.TemporaryDirectory() as scratch:
        start = clock()
        tuner.learn(real_model(), [(ids(12), ids(length - 12)) for _ in range(rows)], Path(scratch) / "policy", (0,))
        return {"seconds": clock() - start, "in_steps": spent[0]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--source")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        case = CASES[options.cases[0]]
        clock = time.process_time if options.cpu else time.perf_counter
        if "rounds" in case:  # noqa: SIM108
            found = rounds(case["tune"], clock)
        else:
            found = steps(case["tune"], clock, **case["steps"])
        found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        print("RESULT " + json.dumps({key: round(value, 3) for key, value in found.items()}))
        return
    own = str(Path(__file__).parent.parent / "src")
    for case in options.cases:
        for _ in range(options.turns):
            for source in [own, *([options.source] if options.source else [])]:
                command = [sys.executable, sys.argv[0], "--here", *(["--cpu"] if options.cpu else []), case]
                environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": source + ":" + _path()}
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                told = json.loads(lines[-1][7:]) if lines else {"failed": done.stderr[-600:]}
                side = "this" if source == own else "that"
                print(json.dumps({"case": case, "side": side, **told}, ensure_ascii=False), flush=True)


def _path() -> str:
    return os.environ.get("PYTHONPATH", "")


if __name__ == "__main__":
    main()
