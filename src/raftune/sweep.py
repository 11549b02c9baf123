"""A recipe over a grid of settings and several seeds: every cell a run of its own, finished ones never run again.

OUT/cells/sample.k=4/seed-0/…      the run          OUT/cells/sample.k=4/seed-0.log    what it said
OUT/cells/sample.k=4/seed-0.json   its figures      OUT/results.jsonl                  those of all finished cells
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from . import files, interrupt, progress
from . import recipe as recipes
from .build import Parts
from .config import Recipe
from .errors import UserError
from .spread import Spread
from .types import digest

POLL = 0.2  # seconds between two looks at the running cells
PATIENCE = "evaluate.patience"


@dataclass(frozen=True)
class Cell:
    """One setting of the grid with one seed. ``values``: recipe key → value as it was written."""

    values: Mapping[str, str]
    seed: int

    @property
    def name(self) -> str:
        """What it is called, also as a folder."""
        plain = ",".join(f"{key}={value}" for key, value in self.values.items()) or "recipe"
        safe = re.sub(r"[^\w.=,:+-]", "_", plain)
        return safe if safe == plain and len(safe) < 120 else f"{safe[:100]}-{digest(plain).hex()[:6]}"

    @property
    def changes(self) -> list[str]:
        return [*(f"{key}={value}" for key, value in self.values.items()), f"seed={self.seed}"]


@dataclass(frozen=True)
class Result:
    """A finished cell: its figures, one row a round (round 0: before any tuning)."""

    cell: Cell
    rounds: Sequence[Mapping[str, Any]]

    def row(self) -> dict[str, Any]:
        """As it stands in results.jsonl, figures to six digits."""
        rounds = [{key: _short(value) for key, value in row.items()} for row in self.rounds]
        return {"cell": dict(self.cell.values), "seed": self.cell.seed, "rounds": rounds}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Result:
        return cls(Cell(row["cell"], row["seed"]), row["rounds"])


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def grid(axes: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """``["sample.k=4,8", "rounds=3"]`` → every combination, the last axis and the seeds running fastest."""
    columns: dict[str, list[str]] = {}
    for axis in axes:
        key, equals, values = axis.partition("=")
        if not equals or not key or not values:
            raise UserError(f"--grid {axis}: write KEY=VALUE,VALUE, like --grid sample.k=4,8,16")
        if key in columns or key == "seed":
            raise UserError(f"--grid {axis}: {key} {'comes twice' if key in columns else 'is what --seeds varies'}")
        columns[key] = list(dict.fromkeys(values.split(",")))
    combinations = itertools.product(*columns.values())
    return [Cell(dict(zip(columns, values, strict=True)), seed) for values in combinations for seed in seeds]


@dataclass(frozen=True)
class Sweep:
    """The cells of a recipe and the folder they lie in."""

    recipe: Path
    cells: Sequence[Cell]
    out: Path
    changes: Sequence[str] = ()
    keep_weights: bool = False

    def check(self) -> None:
        """Every cell's recipe is right, and what lies in the folder is of these recipes."""
        for cell in self.cells:
            parsed = recipes.load(self.recipe, [*self.changes, *cell.changes])
            if not self._result(cell).exists():
                continue
            before, now = self._before(cell), _wanted(parsed, Parts(parsed, self.recipe.parent).settings)
            changed = [
                f"{key} ({before.get(key)!r} → {now.get(key)!r})"
                for key in sorted(before.keys() | now.keys())
                if before.get(key) != now.get(key)
            ]
            if changed:
                raise UserError(
                    f"{self.out}: {cell.name} was run with another recipe: {', '.join(changed)}; name another --out"
                )

    def _before(self, cell: Cell) -> dict[str, Any]:
        """What a finished cell was run with, the keys that a single run may change included."""
        settings = files.read_json(self._folder(cell) / "fingerprint")
        before = {key: value for key, value in settings.items() if not key.startswith("loop.")}
        return before | {"rounds": self._config(cell)["rounds"], PATIENCE: self._config(cell)["evaluate"]["patience"]}

    def _config(self, cell: Cell) -> dict[str, Any]:
        return yaml.safe_load((self._folder(cell) / "config.yaml").read_text(encoding="utf-8"))

    def run(self, jobs: int = 1) -> Iterator[Result]:
        """Yield the finished cells as they finish, earlier ones first; ``jobs`` at a time.

        Raises UserError at the end where cells failed (the others are done), Interrupted after a signal.
        """
        self.check()
        waiting = []
        for cell in self.cells:
            if self._result(cell).exists():
                yield self._read(cell)
            else:
                waiting.append(cell)
        self._write()
        running: list[tuple[Cell, subprocess.Popen[bytes]]] = []
        failed: list[str] = []
        with progress.bar("cells", len(waiting)) as advance:
            try:
                while waiting or running:
                    interrupt.check()
                    while waiting and len(running) < jobs:
                        cell = waiting.pop(0)
                        running.append((cell, self._start(cell, jobs)))
                    for cell, process in [pair for pair in running if pair[1].poll() is not None]:
                        running.remove((cell, process))
                        advance(1)
                        if process.returncode == 0 and self._whole(cell):
                            yield self._finish(cell)
                        else:
                            failed.append(f"{cell.name} seed {cell.seed}: {self._last_word(cell)}")
                    time.sleep(POLL)
            finally:  # a signal, or whoever reads the results has seen enough
                _stop([process for _, process in running])
        if failed:
            raise UserError(
                f"{len(failed)} of {len(self.cells)} cells failed, the others are done; {'; '.join(failed)}"
            )

    def _folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.name / f"seed-{cell.seed}"

    def _result(self, cell: Cell) -> Path:
        return self._folder(cell).with_suffix(".json")

    def _log(self, cell: Cell) -> Path:
        return self._folder(cell).with_suffix(".log")

    def _start(self, cell: Cell, jobs: int) -> subprocess.Popen[bytes]:
        """A process of its own for each cell: what one leaves in memory is not the next one's."""
        threads = max(1, len(os.sched_getaffinity(0)) // jobs) if hasattr(os, "sched_getaffinity") else 1
        environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if jobs > 1 else {})}
        settings = [f"--set={change}" for change in (*self.changes, *cell.changes)]
        command = [sys.executable, "-m", "raftune.cli", "run", str(self.recipe), "--out", str(self._folder(cell))]
        self._log(cell).parent.mkdir(parents=True, exist_ok=True)
        with self._log(cell).open("ab") as log:
            return subprocess.Popen([*command, *settings], stdout=log, stderr=log, env=environment)

    def _last_word(self, cell: Cell) -> str:
        lines = self._log(cell).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1].removeprefix('raftune: ') if lines else 'no output'} ({self._log(cell)})"

    def _rows(self, cell: Cell) -> list[dict[str, Any]]:
        path = self._folder(cell) / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def _whole(self, cell: Cell) -> bool:
        """A reward may end its process as if all were well; only patience ends a run before its rounds."""
        rows = self._rows(cell)
        if not rows:
            return False
        config = self._config(cell)
        return rows[-1]["round"] >= config["rounds"] or config["evaluate"]["patience"] is not None

    def _finish(self, cell: Cell) -> Result:
        """Keep the figures, let the weights go."""
        folder = self._folder(cell)
        files.write_json(self._result(cell), Result(cell, self._rows(cell)).row())
        if not self.keep_weights:
            (folder / "best").unlink(missing_ok=True)
            for policy in folder.glob("rounds/*/policy"):
                shutil.rmtree(policy)
        self._write()
        return self._read(cell)

    def _read(self, cell: Cell) -> Result:
        return Result.of(files.read_json(self._result(cell)))

    def _write(self) -> None:
        """All finished cells in one file, in the order of the grid."""
        done = [self._read(cell).row() for cell in self.cells if self._result(cell).exists()]
        self.out.mkdir(parents=True, exist_ok=True)
        with files.replacing(self.out / "results.jsonl") as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in done), encoding="utf-8")


def _wanted(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {**settings, "rounds": recipe.rounds, PATIENCE: recipe.evaluate.patience}
    return json.loads(json.dumps(wanted, default=str))


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """They finish the shard at hand, so that they can be resumed."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


def read(path: Path) -> list[Result]:
    """The results of a sweep from its results.jsonl."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Result.of(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no results of a sweep ({error})") from None


def last(result: Result, figure: str) -> float | None:
    """The figure at the last round that has it."""
    values = [row[figure] for row in result.rounds if figure in row]
    return values[-1] if values else None


def groups(results: Sequence[Result]) -> dict[tuple[tuple[str, str], ...], list[Result]]:
    """The results of each cell over its seeds, in the order of the grid."""
    found: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        found.setdefault(tuple(result.cell.values.items()), []).append(result)
    return found


def summary(results: Sequence[Result], figures: Sequence[str]) -> list[tuple[dict[str, str], dict[str, Spread]]]:
    """Of each cell its values and the spread of each figure after the last round, as far as it was measured."""
    lines = []
    for values, members in groups(results).items():
        spreads = {}
        for figure in figures:
            known = [value for member in members if (value := last(member, figure)) is not None]
            if known:
                spreads[figure] = Spread.over(known)
        lines.append((dict(values), spreads))
    return lines


def before(results: Sequence[Result], figure: str) -> Spread | None:
    """The figure at round 0, over the seeds: cells of one seed have one start, or else their mean counts once."""
    seeds: dict[int, list[float]] = {}
    for result in results:
        if figure in result.rounds[0]:
            seeds.setdefault(result.cell.seed, []).append(result.rounds[0][figure])
    return Spread.over([mean(values) for values in seeds.values()]) if seeds else None


def total_seconds(result: Result) -> float:
    """Seconds of all rounds, evaluation not counted."""
    return math.fsum(row.get("time/round_s", 0.0) for row in result.rounds)
