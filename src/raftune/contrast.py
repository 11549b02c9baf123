"""What a person sees of a comparison: its lines and table in the terminal, and its plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from . import plots
from .sides import Side

FIRST = ("reward_mean", "perplexity", "reference_perplexity", "kl", "distinct_1", "distinct_2", "length_mean")

WON = "win rate of A"


def view(told: Mapping[str, Any]) -> Group:
    """The verdict, what was counted, and both sides' figures beside each other."""
    return Group(*(Text(line, "bold" if line.startswith(WON) else "") for line in verdict(told)), figures_table(told))


def verdict(told: Mapping[str, Any]) -> list[str]:
    """Win rate, counts, lengths, in words."""
    lines = [f"{side.upper()}: {told[side]['name']}" for side in "ab"]
    if "win_rate" in told:
        low, high = told["interval"]
        lines += [
            f"by {told['by']}: A wins {told['win']}, ties {told['tie']}, loses {told['loss']} "
            f"of {told['pairs']} pairs on {told['prompts']} prompts",
            f"{WON} {told['win_rate']:.1%}, 95 % {low:.1%} to {high:.1%} ({told['interval_by']})",
        ]
    else:
        lines.append(f"by {told['by']}: nothing was compared")
    if "words_mean" in told:
        longer = f"; the longer one won {told['longer_won']:.0%} of the decided" if "longer_won" in told else ""
        lines.append(f"words: A {told['words_mean']['a']:.1f}, B {told['words_mean']['b']:.1f}{longer}")
    names = ("unpaired", "unscored", "unparsed", "orders_disagree", "same_text", "without_vote", "votes",
             "several_raters", "raters_agree")  # fmt: skip
    counted = [f"{told[name]} {name.replace('_', ' ')}" for name in names if told.get(name)]
    counted += [f"agreement (Krippendorff's α) {told['agreement']:.2f}"] if "agreement" in told else []
    if "prompt_tokens" in told:
        money = f", {told['cost']:.4g} in the currency of its price" if "cost" in told else ""
        counted.append(f"the judge took {told['prompt_tokens']:,} + {told['completion_tokens']:,} tokens{money}")
    return [*lines, ", ".join(counted)] if counted else lines


def figures_table(told: Mapping[str, Any]) -> Table:
    """A line a figure; what only one side has stands against a dash."""
    sides = [_figures(told[name]) for name in "ab"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in "AB":
        table.add_column(name, justify="right")
    for name in sorted(sides[0].keys() | sides[1].keys(), key=_place):
        table.add_row(Text(name), *(f"{side[name]:.4g}" if name in side else "–" for side in sides))
    return table


def _figures(side: Mapping[str, Any]) -> dict[str, float]:
    """The curve is about the pairs, so it stands for the run's own points of it."""
    own = {name: value for name, value in side["figures"].items() if not name.startswith("best_of_")}
    curve = side["best_of_n"] if len(side["best_of_n"]) > 1 else {}
    return own | {f"best of {n}, paired": value for n, value in curve.items()}


def _place(name: str) -> tuple[int, int, str]:
    if name in FIRST:
        return 0, FIRST.index(name), ""
    if name.startswith("best of "):
        return 1, int(name.split()[2].rstrip(",")), ""
    return 2, 0, name


def plot(told: Mapping[str, Any], sides: Mapping[str, Side], path: Path) -> bool:
    """Best-of-n curves and held-out reward by round, as far as there are any; False, and no file, without any."""
    curves = {name: told[name]["best_of_n"] for name in "ab" if len(told[name]["best_of_n"]) > 1}
    rounds = {name: [row for row in sides[name].rounds if plots.REWARD in row] for name in "ab"}
    if rounds["a"] == rounds["b"]:
        rounds["b"] = []  # one run and its own start: one line
    panels = [kind for kind, there in (("curve", curves), ("rounds", any(rounds.values()))) if there]
    if not panels:
        return False
    figure, columns = plots.figure_of(len(panels))
    for axes, kind in zip(columns, panels, strict=True):
        if kind == "curve":
            for name, curve in curves.items():
                label = plots.plain(f"{name.upper()}: {told[name]['name']}")
                axes.plot([int(n) for n in curve], list(curve.values()), "o-", label=label)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set(xlabel="n", ylabel="expected best of n", title=plots.plain(f"by {told['by']}"))
        else:
            for name, rows in ((name, rows) for name, rows in rounds.items() if rows):
                label = plots.plain(f"{name.upper()}: {sides[name].path.parents[2].name}")
                axes.plot([row["round"] for row in rows], [row[plots.REWARD] for row in rows], "o-", label=label)
            axes.set(xlabel="round", ylabel="reward", title="held-out reward, each run's own")
            plots.whole_numbers(axes)
        axes.legend(fontsize="small")
    plots.save(figure, path)
    return True
