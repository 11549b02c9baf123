"""Commands over several runs. Heavy imports stand inside the commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import files
from .commands import console
from .errors import UserError
from .exits import exits

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .sweep import Result

studies = typer.Typer()

FIGURES = [
    "heldout/reward_mean",
    "heldout/perplexity",
    "heldout/kl",
    "heldout/distinct_2",
    "heldout/length_mean",
    "heldout/diversity",
    "chosen/reward_mean",
]


@studies.command()
@exits
def sweep(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML).")],
    grid: Annotated[
        list[str] | None, typer.Option("--grid", help="KEY=VALUE,VALUE, like sample.k=4,8; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="So many seeds of each, from the recipe's own.")] = 1,
    change: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for all of them.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time; the cores are shared out.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Default: runs/RECIPE-sweep.")] = None,
    keep_weights: Annotated[
        bool, typer.Option(help="Else only figures and candidates stay of a finished cell.")
    ] = False,
) -> None:
    """Run a recipe over a grid of settings and several seeds; one table, plots. The same command resumes."""
    from . import plots
    from . import recipe as recipes
    from .build import Parts
    from .show import Show
    from .sweep import Sweep, last, total_seconds
    from .sweep import grid as cells_of

    terminal = console()
    parsed = recipes.load(recipe, change or [])
    cells = cells_of(grid or [], range(parsed.seed, parsed.seed + seeds))
    folder = out or Path("runs") / f"{recipe.stem}-sweep"
    plots.figure_of(1)  # before hours are spent: can it be drawn?
    results = []
    with Show(terminal).live():
        for result in Sweep(recipe, cells, folder, change or [], keep_weights).run(jobs):
            results.append(result)
            reward = last(result, plots.REWARD)
            first = result.rounds[0].get(plots.REWARD)
            told = f"{'–' if first is None else f'{first:.3f}'} → {reward:.3f}" if reward is not None else "done"
            line = f"{result.cell.name} seed {result.cell.seed}: held-out {told}, {total_seconds(result):.0f} s"
            terminal.print(line, highlight=False, soft_wrap=True)
    order = {cell.name: place for place, cell in enumerate(cells)}
    results.sort(key=lambda result: (order[result.cell.name], result.cell.seed))
    figures = list(dict.fromkeys([*FIGURES[:1], *Parts(parsed, recipe.parent).watched, *FIGURES[1:]]))
    terminal.print(table(results, figures, terminal))
    with files.replacing(folder / "table.md") as part:
        part.write_text(_markdown(results, figures), encoding="utf-8")
    plots.settings(results, figures, folder / "settings.png")
    plots.curves(results, folder / "rounds.png")
    terminal.print(f"{folder}: results.jsonl, table.md, settings.png, rounds.png", highlight=False, soft_wrap=True)


def _cells(results: Sequence[Result], figures: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heading and lines: each cell's values, seeds, and mean ± standard deviation of each figure that is there."""
    from .spread import Spread
    from .sweep import before, groups, summary, total_seconds

    lines = summary(results, figures)
    shown = [name for name in figures if any(name in spreads for _, spreads in lines)]
    keys = list(lines[0][0]) if lines else []
    start = {name: before(results, name) for name in shown}
    rows = [["before tuning", *[""] * (len(keys) - 1)][: len(keys)]] if keys else [[]]
    rows[0] += ["", *("–" if start[name] is None else str(start[name]) for name in shown), "–"]
    for (values, spreads), members in zip(lines, groups(results).values(), strict=True):
        seconds = Spread.over([total_seconds(member) for member in members])
        told = [str(spreads[name]) if name in spreads else "–" for name in shown]
        rows.append([*values.values(), str(len(members)), *told, str(seconds)])
    return [*keys, "seeds", *shown, "rounds, s"], rows


def table(results: Sequence[Result], figures: Sequence[str], terminal: Console) -> Table:
    """As many of the figures as the terminal is wide; table.md has all."""
    from rich import box
    from rich.table import Table

    heading, rows = _cells(results, figures)
    fitting = Table()
    for shown in range(len(heading), 0, -1):
        left = len(heading) - shown
        caption = f"{left} more in table.md" if left else None
        fitting = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
        for name in heading[:shown]:
            fitting.add_column(name.removeprefix("heldout/"), justify="right", no_wrap=True)
        for row in rows:
            fitting.add_row(*row[:shown])
        if terminal.measure(fitting, options=terminal.options.update(max_width=10_000)).maximum <= terminal.width:
            break
    return fitting


def _markdown(results: Sequence[Result], figures: Sequence[str]) -> str:
    heading, rows = _cells(results, figures)
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


@studies.command()
@exits
def compare(
    a: Annotated[Path, typer.Argument(help="A run directory or a table of scored candidates.")],
    out: Annotated[Path, typer.Option("--out", help="Directory for compare.json, compare.png, verdicts and pairs.")],
    b: Annotated[Path | None, typer.Argument(help="What A is compared with.")] = None,
    by: Annotated[
        str,
        typer.Option(
            help="reward or monitor:NAME (as stored), any --reward SPEC, judge, people, or their VOTES.jsonl."
        ),
    ] = "reward",
    initial: Annotated[bool, typer.Option("--initial", help="Compare a run with its own start.")] = False,
    round_a: Annotated[int | None, typer.Option(min=0, help="Default: the best round.")] = None,
    round_b: Annotated[int | None, typer.Option(min=0, help="Default: the best round.")] = None,
    margin: Annotated[float, typer.Option(min=0, help="Rewards that differ by no more are a tie.")] = 0.0,
    judge_model: Annotated[str | None, typer.Option(help="A causal model as judge: folder or hub id.")] = None,
    judge_endpoint: Annotated[str | None, typer.Option(help="Model name on an OpenAI-compatible server.")] = None,
    judge_url: Annotated[str | None, typer.Option(help="That server; default: OpenAI's.")] = None,
    judge_price: Annotated[
        tuple[float, float] | None, typer.Option(min=0, help="Of a million tokens in, and out; the cost is shown.")
    ] = None,
    seed: int = 0,
) -> None:
    """Win, tie and loss of two runs on the same held-out prompts, by a reward, a judge or people."""
    from . import compare as comparing
    from . import contrast, pick, plots
    from .evaluate import votes
    from .show import Show
    from .sides import paired, side

    terminal = console()
    if initial == (b is not None):
        raise UserError("compare: give two, or one run and --initial" + ("; --initial stands for B" if initial else ""))
    if initial and round_b is not None:
        raise UserError("--round-b: with --initial, B is round 0")
    if (judge_model or judge_endpoint or judge_url or judge_price) and by != "judge":
        raise UserError("--judge-…: is for --by judge")
    judge = pick.judge(judge_model, judge_endpoint, judge_url, judge_price) if by == "judge" else None
    sides = {"a": side(a, round_a), "b": side(b or a, 0 if initial else round_b)}
    pairs, unpaired = paired(sides["a"], sides["b"])
    if judge and sides["a"].modality != "text":
        raise UserError("--by judge: reads texts only; compare pictures by a reward or by people")
    folder = comparing.opened(out)
    if by == "people":
        laid = votes.write(folder, pairs, seed)
        alike = f" ({len(pairs) - laid} more cannot be judged)" if laid < len(pairs) else ""
        told = f"{folder / votes.PAIRS}: {laid} pairs{alike}; whose is whose: {folder / votes.KEY}"
        terminal.print(told, highlight=False, soft_wrap=True)
        return
    plots.figure_of(1)  # before a judge is asked: can it be drawn?
    with Show(terminal).live():
        found = comparing.decided(pairs, by, judge, folder, margin)
    told = comparing.result(sides["a"], sides["b"], by, found, unpaired, seed)
    files.write_json(folder / "compare.json", told)
    terminal.print(contrast.view(told), highlight=False)
    drawn = contrast.plot(told, sides, folder / "compare.png")
    written = "compare.json, compare.png" if drawn else "compare.json"
    terminal.print(f"{folder}: {written}", highlight=False, soft_wrap=True)


@studies.command()
@exits
def report(
    runs: Annotated[list[Path], typer.Argument(help="A run directory, or several to compare.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Default: RUN/report.html; comparison.html for several.")
    ] = None,
) -> None:
    """One self-contained page of a run, also while it goes on, or of several side by side."""
    from .commands import check_out

    try:
        from .report import page
        from .report.record import Record
    except ImportError as error:
        raise UserError(f"report: needs the package {error.name}; pip install 'raftune[report]'") from None
    if doubled := [str(run) for at, run in enumerate(runs) if run.resolve() in {one.resolve() for one in runs[:at]}]:
        raise UserError(f"report: {doubled[0]} is named twice")
    records = [Record.of(run) for run in runs]
    path = out or (runs[0] / page.NAME if len(runs) == 1 else Path("comparison.html"))
    check_out(path)
    page.write(path, records)
    console().print(f"{path}", highlight=False, soft_wrap=True)
