"""What TRL's users read in ``state.log_history``, by the names that it has there, and what their functions log. No
torch."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any

from . import files
from .store import Run

NAMES = {  # of metrics.jsonl → of TRL's log, where both are the same figure
    "reward_mean": "reward",
    "length_mean": "completions/mean_length",
    "kl": "kl",
}
LOGGED = "logged/"  # what functions log stands under it in metrics.jsonl
HELD = "heldout"  # the section of what tells the best round
NONE: Mapping[str, str] = MappingProxyType({})
EXTRA = "extra.json"  # and their columns in this file of a round


def renamed(row: Mapping[str, Any], of: str, prefix: str = "") -> dict[str, float]:
    """The figures ``of/…`` by TRL's names: ``reward``, ``rewards/<name>/mean``, ``completions/…``, ``kl``."""
    found: dict[str, float] = {}
    for key, value in row.items():
        section, _, name = key.partition("/")
        if section != of or not isinstance(value, int | float):
            continue
        part = name.removeprefix("reward/")
        if name in NAMES:
            found[NAMES[name]] = value
        elif part != name:
            found[f"rewards/{part}/mean"] = value
        elif name == "finished":
            found["completions/clipped_ratio"] = 1 - value
    return {f"{prefix}{name}": value for name, value in found.items()}


def as_trl(row: Mapping[str, Any], sets: Mapping[str, str] = NONE) -> dict[str, Any]:
    """A round's figures with TRL's names beside. ``sets``: where several are evaluated, the section of each name."""
    found = renamed(row, "sample") | renamed(row, HELD, "eval_")
    for name, section in sets.items():
        found |= renamed(row, section, f"eval_{name}_")
    if "tune/loss" in row:
        found["loss"] = row["tune/loss"]
    logged = {key.removeprefix(LOGGED): value for key, value in row.items() if key.startswith(LOGGED)}
    return {**logged, **row, **found}


def evaluated(row: Mapping[str, Any], sets: Mapping[str, str] = NONE, prefix: str = "eval_") -> dict[str, float]:
    """Of a round's figures those of the held-out prompts and of the sets, by our names and by TRL's."""
    found: dict[str, Any] = {}
    for section, own in ((HELD, prefix), *((section, f"{prefix}{name}_") for name, section in sets.items())):
        there = {key.removeprefix(f"{section}/"): value for key, value in row.items() if key.startswith(f"{section}/")}
        found |= {f"{own}{key}": value for key, value in there.items()}
    named = {key: value for key, value in as_trl(row, sets).items() if key.startswith("eval_")}
    found |= {f"{prefix}{key.removeprefix('eval_')}": value for key, value in named.items()}
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


class Journal:
    """What reward functions tell by TRL's ``log_metric`` and ``log_extra``, until their round is written.

    ``last``: the last round that is done. While a round is sampled and scored it is the one before; while its policy is
    evaluated it is the round itself, and what is told then is ``eval_…``.
    """

    def __init__(self, last: Callable[[], int]) -> None:
        self._last = last
        self._metrics: dict[tuple[int, str], list[float]] = defaultdict(list)
        self._extra: dict[tuple[int, str], list[Any]] = defaultdict(list)

    def metric(self, name: str, value: float) -> None:
        """A number about a batch; those of a round are meaned."""
        self._metrics[self._last(), name].append(float(value))

    def extra(self, column: str, values: Sequence[Any]) -> None:
        """A value for each output of a batch."""
        self._extra[self._last(), column].extend(values)

    def figures(self, number: int) -> dict[str, float]:
        """The means of what was told since the last time, as they stand in the round's figures."""
        finite = {key: [value for value in told if math.isfinite(value)] for key, told in self._metrics.items()}
        return {
            f"{LOGGED}{_prefix(last, number)}{name}": fmean(values) for (last, name), values in finite.items() if values
        }

    def write(self, run: Run, number: int) -> None:
        """What was told since the round before: numbers into the round's figures, columns into ``extra.json``."""
        if figures := self.figures(number):
            run.log(number, figures)
        if self._extra:
            columns = {f"{_prefix(last, number)}{name}": values for (last, name), values in self._extra.items()}
            plain = json.loads(json.dumps(columns, default=str), parse_constant=lambda _: None)
            files.write_json(run.round(number).folder / EXTRA, plain, indent=None)
        self.clear()

    def clear(self) -> None:
        self._metrics.clear()
        self._extra.clear()


def _prefix(last: int, number: int) -> str:
    return "eval_" if last == number else ""
