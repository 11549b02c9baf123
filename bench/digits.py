"""The digits' recipes, three seeds each: what the judge says before and after, and what it cost. Prints markdown.

Each run is the real command in a process of its own: ``raftune run recipes/NAME.yaml --set seed=SEED``. Runs are kept
below ``--out``; a finished one is not run again. The control draws as many pictures as the others learn from, one a
prompt, and learns from all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RECIPES = Path(__file__).parent.parent / "recipes"
CONTROL = ("sample.k=1", "sample.prompts_per_round=144", "select.rule=best", "select.floor=null")
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {  # name → recipe, changes
    "green five": ("quickstart-image", ()),
    "green five, K=1 without ranking": ("quickstart-image", CONTROL),
    "all fifty": ("digits-all", ()),
    "40 × 40": ("digits-40", ()),
}
FIGURES = ("heldout/judge", "others/judge", "at32/judge", "heldout/diversity")


def run(name: str, seed: int, out: Path) -> tuple[dict[str, float], dict[str, float], float, float]:
    """The figures before any tuning and after the last round; seconds of all rounds; peak memory in GB."""
    recipe, changes = RUNS[name]
    folder = out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    command = [sys.executable, "-m", "raftune.cli", "run", RECIPES / f"{recipe}.yaml", "--out", folder]
    for change in (*changes, f"seed={seed}"):
        command += ["--set", change]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(part) for part in command], check=True, env=environment, stdout=subprocess.DEVNULL)
    rows: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows[0], rows[-1], sum(row.get("time/round_s", 0.0) for row in rows), rows[-1]["memory/peak_bytes"] / 1e9


def spread(values: list[float], form: str = "{:.3f}") -> str:
    """Mean ± standard deviation."""
    return f"{form.format(mean(values))} ± {form.format(stdev(values))}" if len(values) > 1 else form.format(values[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--run", action="append", choices=list(RUNS), help="only these")
    options = parser.parse_args()
    print("| run | figure | before | after | after / before |\n|---|---|---|---|---|", flush=True)
    for name in options.run or RUNS:
        found = [run(name, seed, options.out) for seed in range(options.seeds)]
        for figure in FIGURES:
            pairs = [(first[figure], last[figure]) for first, last, *_ in found if figure in last]
            if pairs:
                before, after = ([pair[side] for pair in pairs] for side in (0, 1))
                ratio = f"{mean(b / a for a, b in pairs):.2f}"
                print(f"| {name} | {figure} | {spread(before)} | {spread(after)} | {ratio} |", flush=True)
        seconds, memory = ([one[place] for one in found] for place in (2, 3))
        print(
            f"| {name} | seconds of rounds; peak GB | | {spread(seconds, '{:.0f}')}; {max(memory):.2f} | |", flush=True
        )


if __name__ == "__main__":
    main()
