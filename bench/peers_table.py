"""A Markdown table of what ``peers.py`` found: one row a method and setting, the mean ± deviation over its seeds.

python bench/peers_table.py runs/peers [--figure heldout/monitor …]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

FIGURES = ("heldout/perplexity", "heldout/kl", "heldout/distinct_2", "heldout/length_mean")
REWARD = "heldout/reward_mean"
GIB = 1024**3


def read(folder: Path) -> list[dict[str, Any]]:
    """The results below a folder, whatever the names of the folders between."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("**/result.json"))]


def table(results: Iterable[dict[str, Any]], figures: Sequence[str] = FIGURES) -> str:
    """Runs that differ in nothing but the seed share a row. What was not measured is shown as –."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in results:
        groups.setdefault(json.dumps([_name(one), one["learning_rate"], _settings(one)]), []).append(one)
    names = [figure.removeprefix("heldout/") for figure in figures]
    heads = ["method", "lr", "seeds", "steps", "samples", "reward before → after", *names]
    lines = [[*heads, "s", "s/step", "peak GiB", "settings"]]
    for runs in groups.values():
        first = runs[0]
        before, after = spread(_figures(runs, "before", REWARD)), spread(_figures(runs, "after", REWARD))
        lines.append(
            [_name(first), f"{first['learning_rate']:g}", ", ".join(str(seed) for seed in sorted(_of(runs, "seed")))]
            + [spread(_of(runs, "steps"), 0), spread(_of(runs, "samples"), 0), f"{before} → {after}"]
            + [spread(_figures(runs, "after", figure)) for figure in figures]
            + [spread(_of(runs, "seconds"), 0), spread(_of(runs, "seconds_per_step"), 1)]
            + [spread([run["peak_bytes"] / GIB for run in runs], 1), _settings(first)]
        )
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows[0], "|" + " --- |" * len(lines[0]), *rows[1:]])


def spread(values: Sequence[float], digits: int = 3) -> str:
    """``mean ± sample standard deviation``; no deviation where it is one value or all are the same."""
    if not values:
        return "–"
    middle = f"{mean(values):.{digits}f}"
    return middle if len(set(values)) == 1 else f"{middle} ± {stdev(values):.{digits}f}"


def _name(one: dict[str, Any]) -> str:
    drawn = "" if one["disturb"] in {"none", "scale", "shift"} else f" {one['sigma']:g}"
    return one["method"] if one["disturb"] == "none" else f"{one['method']}, {one['disturb']}{drawn}"


def _settings(one: dict[str, Any]) -> str:
    """What else tells two rows apart."""
    asked = [Path(one["recipe"]).stem, f"{one['asked_steps']} steps", *one["set"], *one["trl"]]
    return ", ".join(asked + ([f"{one['minutes']:g} min"] if one["minutes"] is not None else []))


def _of(runs: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [run[key] for run in runs]


def _figures(runs: Sequence[dict[str, Any]], when: str, figure: str) -> list[float]:
    return [run[when][figure] for run in runs if figure in run[when]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--figure", action="append", default=[], help="one more column, like heldout/monitor")
    options = parser.parse_args()
    print(table(read(options.folder), (*FIGURES, *options.figure)))
