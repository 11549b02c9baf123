"""Paired comparisons: each side in a process of its own, A B C A B C, medians, the ratio of each pair.

A benchmark calls :func:`main` with its cases and its sides, ours first. A side gets a case's arguments and returns
``{"rate": …, …}`` or ``{"seconds": …, …}``, timed by itself after a warm-up; peak memory is the process's unless it
says so itself. Every run lands in ``docs/benchmarks/MACHINE/NAME.json``, beside those of former sessions of the same
work, unless ``--anew`` drops them; ``page.py`` makes the page of what lies there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
from ratios import ratios, spread

from raftune import files

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "benchmarks"
OURS = "ours"
Figures = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """Who does the work: a function of the benchmark's script, or a script of its own, which is given ``--case CASE``
    and prints ``RESULT {…}``.

    ``venv``: the virtual environment whose interpreter runs it. Where that is missing, a function runs in this one and
    a script does not run at all. ``env``: environment variables on top.
    """

    work: Callable[..., Figures] | Path
    venv: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def python(self) -> str | None:
        """The interpreter; None: it cannot run here."""
        own = ROOT / self.venv / "bin" / "python" if self.venv else None
        if own is not None and own.exists():
            return str(own)
        return sys.executable if callable(self.work) or own is None else None


def main(
    cases: Mapping[str, Mapping[str, Any]],
    sides: Mapping[str, Side | Callable[..., Figures]],
    smaller_is_better: str | None = None,
    pairs: int = 3,
) -> None:
    """Compare the sides on every case, keep the runs and print one line a case and peer; a ratio > 1: ours is better.

    Figures are rates unless ``smaller_is_better`` names the figure that is compared.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=pairs)
    parser.add_argument("--case", action="append", choices=list(cases), help="only these")
    parser.add_argument("--anew", action="store_true", help="drop former sessions: code or peers are others now")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    machine.add_options(parser)
    options = parser.parse_args()
    known = {name: side if isinstance(side, Side) else Side(side) for name, side in sides.items()}
    if options.side:
        print("RESULT " + json.dumps(figures_of(known[options.side], cases[options.case[0]])))
        return
    machine.confine(options.threads, options.cpus)
    record = Record(Path(sys.argv[0]).stem, smaller_is_better)
    for case in options.case or cases:
        session = {**machine.conditions(options), "turns": options.pairs}
        found: Figures = {"arguments": dict(cases[case]), "sessions": [session], "runs": {}}
        found["absent"] = {name: f"no {side.venv}/bin/python" for name, side in known.items() if side.python is None}
        for number in range(options.pairs):
            for name, side in known.items():
                if side.python is not None:
                    print(
                        f"{record.name}: {case}: {name}, {number + 1} of {options.pairs}", file=sys.stderr, flush=True
                    )
                    found["runs"].setdefault(name, []).append(measure(case, name, side))
        for line in record.lines(case, found):
            print(line, flush=True)
        record.keep(case, found, order=list(cases), anew=options.anew)


def figures_of(side: Side, arguments: Mapping[str, Any]) -> Figures:
    """One side in this very process."""
    assert callable(side.work)
    found = side.work(**arguments)
    return {"peak_gb": machine.peak_gb(), **found, "versions": machine.versions()}


def measure(case: str, name: str, side: Side) -> Figures:
    """One side once, in a fresh process."""
    if isinstance(side.work, Path):
        command = [str(side.python), str(side.work), "--case", case]
    else:
        command = [str(side.python), sys.argv[0], "--case", case, "--side", name]
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths)), **side.env}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{case}, {name}: failed\n{result.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


@dataclass(frozen=True)
class Record:
    """What is kept of a comparison on this machine."""

    name: str
    smaller_is_better: str | None

    @property
    def path(self) -> Path:
        return RESULTS / machine.slug(machine.name()) / f"{self.name}.json"

    def keep(self, case: str, found: Figures, order: list[str], anew: bool) -> None:
        """Put a case's runs behind those of its former sessions, or in their place; other cases stay."""
        cases = files.read_json(self.path)["cases"] if self.path.exists() else {}
        if case in cases and not anew and alike(cases[case], found):
            found = joined(cases[case], found)
        cases = {name: (cases | {case: found})[name] for name in order if name in cases or name == case}
        about = {
            "machine": machine.name(),
            "about": machine.description(),
            "compared": self.smaller_is_better or "rate",
        }
        files.write_json(self.path, about | {"smaller_is_better": self.smaller_is_better is not None, "cases": cases})

    def lines(self, case: str, found: Figures) -> list[str]:
        """This session, for the terminal."""
        told = [{"case": case, "against": peer, **self.summary(found["runs"], peer)} for peer in found["runs"]]
        return [json.dumps(line, ensure_ascii=False) for line in told if line["against"] != OURS]

    def summary(self, runs: Figures, peer: str) -> Figures:
        """Medians of both sides, their ratio and its range."""
        key = self.smaller_is_better or "rate"
        values = {side: [run[key] for run in runs[side]] for side in (OURS, peer)}
        line = {side: str(spread(values[side])) for side in values}
        line["ratio"] = str(spread(ratios(values[OURS], values[peer], self.smaller_is_better is not None)))
        line["memory"] = str(spread([run["peak_gb"] for run in runs[OURS]]))
        line[f"memory of {peer}"] = str(spread([run["peak_gb"] for run in runs[peer]]))
        return line


def alike(former: Figures, found: Figures) -> bool:
    """The same work by the same sides on the same threads: one comparison, however long ago."""
    confined = [{(str(one["threads"]), str(one["cpus"])) for one in some["sessions"]} for some in (former, found)]
    return (
        former["arguments"] == found["arguments"]
        and former["runs"].keys() == found["runs"].keys()
        and confined[0] == confined[1]
    )


def joined(former: Figures, found: Figures) -> Figures:
    """Sessions and runs one behind the other, so that the turns of all sides stay pairs."""
    runs = {side: [*former["runs"][side], *some] for side, some in found["runs"].items()}
    return found | {"sessions": [*former["sessions"], *found["sessions"]], "runs": runs}


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
            stamps.append(machine.clock())

    return Stopwatch(), stamps


def real_model() -> str:
    """The real SmolLM2-135M-Instruct."""
    from raftune.models import locate

    return locate("asset:smollm2-135m-instruct")


def openings() -> list[str]:
    """The prompts of the quickstart."""
    lines = (ROOT / "recipes" / "openings.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]
