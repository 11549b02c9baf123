"""Paired comparisons: each side in a process of its own, A B A B, medians, the ratio of each pair.

A benchmark calls :func:`main` with its cases and one function per side. A side gets a case's arguments and returns
``{"seconds": …, …}``, timed by itself after a warm-up; peak memory is the process's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

Side = Callable[..., dict[str, float]]


def main(
    cases: Mapping[str, Mapping[str, Any]], sides: Mapping[str, Side], smaller_is_better: str | None = None
) -> None:
    """Print one JSON line a case: ``{"case", "ours", "peer", "ratio", …}``; ratio > 1: ours is better.

    Figures are rates unless ``smaller_is_better`` names the figure that is compared.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--case", action="append", help="only these")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        figures = sides[options.side](**cases[options.case[0]])
        figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        print("RESULT " + json.dumps(figures))
        return
    print(json.dumps({"machine": machine()}, ensure_ascii=False), flush=True)
    for case in options.case or cases:
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
        for _ in range(options.pairs):
            for side in runs:
                runs[side].append(measure(case, side))
        print(json.dumps(compare(case, runs, smaller_is_better), ensure_ascii=False), flush=True)


def measure(case: str, side: str) -> dict[str, float]:
    """One side once, in a fresh process."""
    command = [sys.executable, sys.argv[0], "--case", case, "--side", side]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{case}, {side}: failed\n{result.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def compare(case: str, runs: dict[str, list[dict[str, float]]], smaller: str | None) -> dict[str, Any]:
    """Medians of both sides, the median ratio of the pairs and its range."""
    key = smaller or "rate"
    pairs = list(zip(runs["ours"], runs["peer"], strict=True))
    ratios = [p[key] / o[key] if smaller else o[key] / p[key] for o, p in pairs]
    line: dict[str, Any] = {"case": case}
    line |= {side: figure(median(run[key] for run in runs[side])) for side in ("ours", "peer")}
    line |= {"ratio": figure(median(ratios)), "ratios": [figure(ratio) for ratio in ratios]}
    for name in runs["ours"][0]:
        if name not in {key}:
            for side in ("ours", "peer"):
                if name in runs[side][0]:
                    line[f"{side}_{name}"] = figure(median(run[name] for run in runs[side]))
    line["memory_ratio"] = figure(median(o["peak_gb"] / p["peak_gb"] for o, p in pairs))
    return line


def figure(value: float) -> float:
    """Three significant digits: more would be noise."""
    return float(f"{value:.3g}")


def machine() -> str:
    """What ran it."""
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.cpu.get_capabilities().get("cpu_name")
    return f"{where}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}"


def trl_options(scratch: str) -> dict[str, Any]:
    """What every TRL peer is told: the hardware's precision, no reports, nothing saved. The rest stays as it comes."""
    import torch

    from raftune.models import compute_dtype, device

    return {
        "output_dir": scratch,
        "learning_rate": 2e-5,
        "bf16": compute_dtype(device()) == torch.bfloat16,
        "use_cpu": device().type == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def stopwatch() -> tuple[Any, list[float]]:
    """A trainer callback and the times at which its optimiser steps ended."""
    from transformers import TrainerCallback

    stamps: list[float] = []

    class Stopwatch(TrainerCallback):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            stamps.append(time.perf_counter())

    return Stopwatch(), stamps


def real_model() -> str:
    """The real SmolLM2-135M-Instruct."""
    from raftune.models import locate

    return locate("asset:smollm2-135m-instruct")


def openings() -> list[str]:
    """The prompts of the quickstart."""
    file = Path(__file__).parent.parent / "recipes" / "openings.jsonl"
    return [json.loads(line)["prompt"] for line in file.read_text(encoding="utf-8").splitlines()]
