"""What `raftune estimate` says of three recipes, and what then happens: time, memory and disk, with the error.

    python bench/estimate.py [text] [image] [lora] [--rounds 3] [--seconds 30]

Each recipe is estimated and then run, in processes of their own, one after the other: nothing else may run beside them.
Prints Markdown; exits with 1 where time or disk is off by more than a quarter, or a peak of memory is over its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
# A classifier with a fresh head: what it says means nothing, what it costs is what such a reward costs
CLASSIFIER = '{use: "classifier:asset:all-minilm-l6-v2", label: LABEL_1}'
CASES = {
    "text": ("quickstart.yaml", []),
    "image": ("quickstart-image.yaml", []),
    "lora": ("quickstart.yaml", ["tune.lora={r: 16}", f"reward={CLASSIFIER}", "tune.learning_rate=1.0e-4"]),
}
STAGES = ("sample", "score", "tune", "evaluate")


def raftune(*command: str) -> tuple[str, float]:
    """What it prints, and its seconds."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "raftune.cli", *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout, time.perf_counter() - begun


def happened(folder: Path) -> dict[str, Any]:
    """Seconds and peaks of each stage, and bytes on disk, of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    spent = {stage: sum(row.get(f"time/{stage}_s", 0.0) for row in rows) for stage in STAGES}
    peaks = {stage: max((row.get(f"memory/{stage}_bytes", 0) for row in rows), default=0) for stage in STAGES}
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {"seconds": spent, "memory": peaks, "disk": sum(path.stat().st_size for path in files)}


def compared(name: str, rounds: int, seconds: float) -> Iterator[tuple[str, float, float, str]]:
    """(what, said, happened, unit) of one recipe."""
    file, changes = CASES[name]
    options = [part for change in [*changes, f"rounds={rounds}"] for part in ("--set", change)]
    text, took = raftune("estimate", str(RECIPES / file), "--json", "--seconds", str(seconds), *options)
    said = json.loads(text)
    print(f"{name}: estimated in {took:.0f} s; load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        _, wall = raftune("run", str(RECIPES / file), "--out", str(out), *options)
        real = happened(out)
    yield "whole command", said["seconds"], wall, "s"
    yield "stages", said["seconds"] - said["start_seconds"], sum(real["seconds"].values()), "s"
    for stage in STAGES:
        yield stage, said["stages"][stage]["seconds"], real["seconds"][stage], "s"
    for stage in STAGES:
        if real["memory"][stage]:
            yield f"{stage}, memory", said["stages"][stage]["memory_bytes"], real["memory"][stage], "B"
    disk = said["disk"]
    nearest = min((disk["least_bytes"], disk["most_bytes"]), key=lambda one: abs(one - real["disk"]))
    yield "disk", nearest, real["disk"], "B"


def shown(value: float, unit: str) -> str:
    return f"{value:.1f} s" if unit == "s" else f"{value / 1e6:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0)
    asked = parser.parse_args()
    held = True
    print("| recipe | what | said | happened | off by |\n|---|---|---|---|---|")
    for name in asked.cases:
        for what, said, real, unit in compared(name, asked.rounds, asked.seconds):
            off = said / real - 1 if real else 0.0
            print(f"| {name} | {what} | {shown(said, unit)} | {shown(real, unit)} | {off:+.0%} |", flush=True)
            if "memory" in what:
                held &= 0 <= off <= 0.5
            elif what in {"whole command", "disk"}:
                held &= abs(off) <= 0.25
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
