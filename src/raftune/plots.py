"""Pictures of a sweep: what a setting does to the figures, and the held-out reward over the rounds (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files
from .errors import UserError
from .spread import Spread
from .sweep import Result, groups, last, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REWARD = "heldout/reward_mean"


def figure_of(columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes. UserError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need the package matplotlib; pip install 'raftune[plots]'") from None
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # no display is asked for
    axes = figure.subplots(rows, columns, squeeze=False)
    flat: list[Any] = list(axes.flat)
    for one in flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, flat


def plain(text: str) -> str:
    """As it stands: dollars are no formula's."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """As the ending of the path says: .png or .svg."""
    with files.replacing(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=150)


def whole_numbers(axes: Axes) -> None:
    """Only whole numbers on the x axis: there is no round 1.5."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(figure: Figure, panel: Axes) -> None:
    """Below the panels, where it hides no line."""
    handles, labels = panel.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small", frameon=False)


def settings(results: Sequence[Result], figures: Sequence[str], path: Path) -> None:
    """One panel a figure: its spread over seeds against the grid's first setting, a line for each of the others.
    Settings that span a factor of ten stand on a logarithmic axis."""
    shown = [name for name in figures if any(last(result, name) is not None for result in results)]
    figure, axes = figure_of(min(len(shown), 3), -(-len(shown) // 3))
    lines = summary(results, shown)
    axis = next(iter(lines[0][0]), "seed")
    ticks = list(dict.fromkeys(values.get(axis, "") for values, _ in lines))
    numbers = [_number(tick) for tick in ticks]
    places = {tick: float(i) if None in numbers else numbers[i] for i, tick in enumerate(ticks)}
    positive = [number for number in numbers if number is not None and number > 0]
    far = len(positive) == len(numbers) and max(positive) >= 10 * min(positive)
    rest: dict[str, list[tuple[float, Spread]]]
    for panel, name in zip(axes, shown, strict=False):
        rest = {}
        for values, spreads in lines:
            if name in spreads:
                label = plain(", ".join(f"{key}={value}" for key, value in values.items() if key != axis))
                rest.setdefault(label, []).append((places[values.get(axis, "")] or 0.0, spreads[name]))
        for label, points in rest.items():
            xs, spreads_of = [x for x, _ in points], [spread for _, spread in points]
            bars = [0.0 if s.count < 2 else s.deviation for s in spreads_of]
            style = {"marker": "o", "capsize": 3, "linestyle": "none" if None in numbers else "-"}
            panel.errorbar(xs, [s.mean for s in spreads_of], yerr=bars, label=label or None, **style)
        start = [value for result in results if (value := result.rounds[0].get(name)) is not None]
        if start:
            panel.axhline(sum(start) / len(start), linestyle=":", color="grey", label="before tuning")
        if far:
            panel.set_xscale("log")
            panel.minorticks_off()
        panel.set(title=name, xlabel=axis, xticks=[place or 0.0 for place in places.values()])
        panel.set_xticklabels([plain(tick) for tick in ticks], rotation=20 if None in numbers or far else 0)
    for spare in axes[len(shown) :]:
        spare.set_visible(False)
    _legend(figure, axes[0])
    save(figure, path)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def curves(results: Sequence[Result], path: Path, name: str = REWARD) -> None:
    """The figure over the rounds, a line a cell: the mean over seeds; of up to six cells one standard deviation is
    shaded, as more would hide each other."""
    figure, (panel,) = figure_of(1)
    cells = groups(results)
    figure.set_size_inches(7.2, 4.2 + 0.12 * len(cells))
    for place, (values, members) in enumerate(cells.items()):
        at: dict[int, list[float]] = {}
        for member in members:
            for row in member.rounds:
                if name in row:
                    at.setdefault(row["round"], []).append(row[name])
        spreads = [Spread.over(found) for found in at.values()]
        label = plain(", ".join(f"{key}={value}" for key, value in values)) or "recipe"
        style = ("-", "--", ":", "-.")[place // 10 % 4]  # ten colours, then the same ones in another stroke
        (line,) = panel.plot(list(at), [s.mean for s in spreads], style, marker="o", markersize=3, label=label)
        if len(cells) > 6:
            continue
        spread = [0.0 if s.count < 2 else s.deviation for s in spreads]
        low = [s.mean - d for s, d in zip(spreads, spread, strict=True)]
        high = [s.mean + d for s, d in zip(spreads, spread, strict=True)]
        panel.fill_between(list(at), low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    panel.set(xlabel="round", ylabel=name)
    whole_numbers(panel)
    _legend(figure, panel)
    save(figure, path)
