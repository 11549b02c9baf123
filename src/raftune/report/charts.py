"""The charts of a run, and of several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from ..plots import plain, whole_numbers
from ..spread import Spread
from .record import REWARD, Record
from .svg import SERIES, Chart, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {"held out": SERIES[0], "chosen": SERIES[1], "sampled": SERIES[2]}  # have one colour in all charts
STAGES = ("sample", "score", "select", "tune", "evaluate")
SHOWN_ROUNDS = 12  # of the histograms


def of_run(record: Record) -> list[Chart]:
    """Every chart for which the run has figures."""
    made = [one(record) for one in (_rewards, _against_kl, _watched, _diversity, _lengths, _histograms)]
    made += [one(record) for one in (_best_of_n, _sources, _time, _memory)]
    return [chart for chart in made if chart is not None]


def _line(axes: Axes, record: Record, figure: str, label: str) -> None:
    rounds, values = record.series(figure)
    if not rounds:
        return
    (line,) = axes.plot(rounds, values, marker="o", label=plain(label))
    if label in KINDS:
        line.set_color(KINDS[label])
    error = figure.removesuffix("_mean") + "_se"
    errors = [record.row(number).get(error) for number in rounds]
    if any(errors):
        low = [value - (e or 0) for value, e in zip(values, errors, strict=True)]
        high = [value + (e or 0) for value, e in zip(values, errors, strict=True)]
        axes.fill_between(rounds, low, high, alpha=0.18, color=line.get_color(), linewidth=0)


def _by_round(axes: Axes, **labels: str) -> None:
    axes.set(xlabel="round", **labels)
    whole_numbers(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _from_nought(axes: Axes) -> None:
    """A change of a percent looks like one."""
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])


def _from_to(record: Record, figure: str, words: str) -> str:
    rounds, values = record.series(figure)
    return f"{words} {values[0]:.3g} in round {rounds[0]}, {values[-1]:.3g} in round {rounds[-1]}." if rounds else ""


def _rewards(record: Record) -> Chart | None:
    known = {"sample/reward_mean": "sampled", "chosen/reward_mean": "chosen", REWARD: "held out"}
    if not any(record.series(figure)[0] for figure in known):
        return None

    def draw(axes: Axes) -> None:
        for figure, label in known.items():
            _line(axes, record, figure, label)
        _by_round(axes, ylabel="mean reward")

    banded = " The band is one standard error over prompts." if record.series("heldout/reward_se")[0] else ""
    told = _from_to(record, REWARD, "Held-out reward:") + banded
    return drawn("rewards", "Reward by round", told, draw)


def _against_kl(record: Record) -> Chart | None:
    points = [row for row in record.rows if "heldout/kl" in row and REWARD in row]
    if len(points) < 2:
        return None

    def draw(axes: Axes) -> None:
        axes.plot([row["heldout/kl"] for row in points], [row[REWARD] for row in points], marker="o")
        for row in points:
            place = (row["heldout/kl"], row[REWARD])
            axes.annotate(str(row["round"]), place, textcoords="offset points", xytext=(4, -10), fontsize=8)
        axes.set(xlabel="KL from the initial policy, nats an answer", ylabel="held-out reward")

    told = f"{_from_to(record, 'heldout/kl', 'KL:')} {_from_to(record, REWARD, 'Held-out reward:')}"
    return drawn("kl", "What the reward cost in KL", told, draw)


def _watched(record: Record) -> Chart | None:
    """What monitors say, or else the reward on further prompts."""
    if not record.watched:
        return None

    def draw(axes: Axes) -> None:
        for figure in record.watched:
            _line(axes, record, figure, figure.removeprefix("heldout/"))
        _by_round(axes, ylabel="held out")

    told = " ".join(_from_to(record, one, f"{one.removeprefix('heldout/')}:") for one in record.watched)
    return drawn("watched", "What only watches" if record.monitors else "Reward on further prompts", told, draw)


def _diversity(record: Record) -> Chart | None:
    found = [figure for figure in ("distinct_2", "diversity") if record.series(f"heldout/{figure}")[0]]
    if not found:
        return None
    figure, words = found[0], {"distinct_2": "distinct-2", "diversity": "difference between pictures"}[found[0]]

    def draw(axes: Axes) -> None:
        for prefix, label in (("heldout", "held out"), ("chosen", "chosen")):
            _line(axes, record, f"{prefix}/{figure}", label)
        _from_nought(axes)
        _by_round(axes, ylabel=words)

    return drawn("diversity", "Diversity", _from_to(record, f"heldout/{figure}", f"Held-out {words}:"), draw)


def _lengths(record: Record) -> Chart | None:
    figure = "length_mean"
    if not record.series(f"heldout/{figure}")[0]:
        return None

    def draw(axes: Axes) -> None:
        for prefix, label in (("heldout", "held out"), ("sample", "sampled"), ("chosen", "chosen")):
            _line(axes, record, f"{prefix}/{figure}", label)
        _from_nought(axes)
        _by_round(axes, ylabel="tokens an answer")

    return drawn("lengths", "Length", _from_to(record, f"heldout/{figure}", "Held-out tokens:"), draw)


def _histograms(record: Record) -> Chart | None:
    """A ridge a round, the latest on top, each as high as the others."""
    found = {row["round"]: record.rewards(row["round"]) for row in record.rows}
    found = {number: rewards for number, rewards in found.items() if len(rewards)}
    if not found:
        return None
    numbers = list(found)
    if len(numbers) > SHOWN_ROUNDS:
        places = np.linspace(0, len(numbers) - 1, SHOWN_ROUNDS).round().astype(int)
        numbers = [numbers[place] for place in places]
    low, high = (f(float(f(found[number])) for number in numbers) for f in (min, max))
    edges = np.linspace(low, high if high > low else low + 1, 31)
    shares = {number: np.histogram(found[number], edges)[0] / len(found[number]) for number in numbers}

    def draw(axes: Axes) -> None:
        for place, (number, share) in enumerate(shares.items()):
            ridge = place + 0.9 * share / share.max()
            axes.stairs(ridge, edges, baseline=place, fill=True, alpha=0.55, color=SERIES[0], linewidth=0)
            mean = float(found[number].mean())
            axes.plot([mean, mean], [place, place + 0.8], color=SERIES[1], label=None if place else "mean")
        axes.set(xlabel="reward of a candidate", ylabel="round", yticks=range(len(shares)))
        axes.set_yticklabels([str(number) for number in shares])
        axes.grid(visible=False, axis="y")
        axes.legend()

    return drawn("histograms", "Rewards of all candidates", "How the rewards of each round's candidates lie.", draw)


def _best_of_n(record: Record) -> Chart | None:
    curves: dict[int, dict[int, float]] = {}
    for number in dict.fromkeys((0, record.best)):
        row = record.row(number) if number is not None else {}
        points = {int(key.rpartition("_")[2]): row[key] for key in row if re.fullmatch(r"heldout/best_of_\d+", key)}
        if points and number is not None:
            curves[number] = {1: row[REWARD], **points}
    if not curves:
        return None

    def draw(axes: Axes) -> None:
        for number, points in curves.items():
            label = f"round {number}" if number else "before"
            axes.plot(list(points), list(points.values()), marker="o", label=label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="n", ylabel="expected best of n")
        axes.legend()

    return drawn("best-of-n", "Best of n, held out", "What sampling n answers and keeping the best would give.", draw)


def _stacked(name: str, title: str, told: str, series: Mapping[str, Mapping[int, float]], label: str) -> Chart | None:
    """Bars by round."""
    rounds = sorted({number for one in series.values() for number in one})
    if not rounds:
        return None

    def draw(axes: Axes) -> None:
        below = np.zeros(len(rounds))
        for place, (kind, values) in enumerate(series.items()):
            heights = np.array([values.get(number, 0.0) for number in rounds])
            if heights.any():
                axes.bar(rounds, heights, bottom=below, label=plain(kind), color=SERIES[place % len(SERIES)], width=0.7)
                below += heights
        axes.grid(visible=False, axis="x")
        _by_round(axes, ylabel=label)

    return drawn(name, title, told, draw)


def _measured(record: Record, figure: str, scale: float = 1.0) -> dict[int, float]:
    rounds, values = record.series(figure)
    return {number: value * scale for number, value in zip(rounds, values, strict=True)}


def _sources(record: Record) -> Chart | None:
    prefix = "chosen/source/"
    series = {figure.removeprefix(prefix): _measured(record, figure) for figure in record.figures(prefix)}
    told = "Whose candidates were chosen, as shares."
    return _stacked("sources", "Who won", told, series, "share of the chosen")


def _time(record: Record) -> Chart | None:
    series = {stage: _measured(record, f"time/{stage}_s") for stage in STAGES}
    total = sum(sum(one.values()) for one in series.values())
    return _stacked("time", "Where the time went", f"{total:.0f} seconds in all.", series, "seconds")


def _memory(record: Record) -> Chart | None:
    peaks = {stage: _measured(record, f"memory/{stage}_bytes", 1e-9) for stage in STAGES}
    most = {stage: max(values.values()) for stage, values in peaks.items() if values}
    if not most:
        return None

    def draw(axes: Axes) -> None:
        stages = list(most)[::-1]
        bars = axes.barh(stages, [most[stage] for stage in stages], color=SERIES[0], height=0.6)
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.15)
        axes.set(xlabel="GB, the most of any round")

    return drawn("memory", "Peak memory by stage", ", ".join(f"{s} {v:.2f} GB" for s, v in most.items()) + ".", draw)


COMPARED = {
    REWARD: "Held-out reward",
    "heldout/kl": "KL from the initial policy",
    "heldout/distinct_2": "Distinct-2, held out",
    "heldout/diversity": "Diversity, held out",
    "heldout/length_mean": "Tokens an answer, held out",
    "heldout/perplexity": "Perplexity, held out",
}


def of_runs(groups: Mapping[str, Sequence[Record]]) -> list[Chart]:
    """Each figure by round, a line a group: the mean over its runs, which differ by their seeds, and one standard
    deviation around it."""
    watched = dict.fromkeys(figure for members in groups.values() for one in members for figure in one.watched)
    figures = COMPARED | {figure: f"{figure.removeprefix('heldout/')}, held out" for figure in watched}
    made = []
    for place, (figure, title) in enumerate(figures.items()):
        if any(one.series(figure)[0] for members in groups.values() for one in members):
            made.append(_compared(f"compared-{place}", figure, title, groups))
    return made


def _compared(name: str, figure: str, title: str, groups: Mapping[str, Sequence[Record]]) -> Chart:
    lines: dict[str, dict[int, Spread]] = {}
    colours = dict(zip(groups, cycle(SERIES), strict=False))  # a run has one in all charts, whichever it is missing in
    for label, members in groups.items():
        at: dict[int, list[float]] = {}
        for member in members:
            for number, value in zip(*member.series(figure), strict=True):
                at.setdefault(number, []).append(value)
        if at:
            lines[label] = {number: Spread.over(at[number]) for number in sorted(at)}

    def draw(axes: Axes) -> None:
        for label, points in lines.items():
            means = np.array([one.mean for one in points.values()])
            around = np.nan_to_num([one.deviation for one in points.values()])
            (line,) = axes.plot(list(points), means, marker="o", label=plain(label), color=colours[label])
            if around.any():
                axes.fill_between(
                    list(points), means - around, means + around, alpha=0.18, color=line.get_color(), linewidth=0
                )
        _by_round(axes)

    ends = {label: [one.mean for one in points.values()] for label, points in lines.items()}
    told = " ".join(f"{label}: {means[0]:.3g} to {means[-1]:.3g}." for label, means in ends.items())
    return drawn(name, title, told, draw)
