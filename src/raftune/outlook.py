"""``raftune estimate``: what a recipe will take, before it runs; and how a person sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .commands import console
from .estimate import STAGES, Estimate
from .exits import exits

if TYPE_CHECKING:
    from rich.console import RenderableType

outlook = typer.Typer()


@outlook.command()
@exits
def estimate(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML).")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, like sample.k=16; may be repeated.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="EUR an hour of the machine.")] = None,
    machine: Annotated[
        str | None, typer.Option(help="Another machine, from its data sheet: a name like h100-80gb, or a YAML file.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="About how long it may try the recipe's parts out.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Time, memory, disk and cost of a recipe before it runs. Tries its parts out for half a minute; leaves no file."""
    from . import recipe as recipes
    from .build import Parts

    terminal = console()
    parts = Parts(recipes.load(recipe, change or []), recipe.parent)
    if machine is not None:
        from .machines import on_paper

        found = on_paper(parts, machine, price)
    else:
        import psutil

        from .forecast import forecast

        found = forecast(parts, price, seconds, began=psutil.Process().create_time())
    if as_json:
        print(json.dumps(told(found), indent=2))
    else:
        terminal.print(view(found), highlight=False)


def told(found: Estimate) -> dict[str, Any]:
    """What ``--json`` prints: seconds, bytes, EUR. What is not known is absent."""
    stages = {}
    for stage in (*STAGES, "other"):
        figures = {
            "seconds": found.stages[stage],
            "seconds_per_round": found.per_round(stage),
            "memory_bytes": found.memory.get(stage),
            "memory_terms": dict(found.terms[stage]) if stage in found.terms else None,
        }
        stages[stage] = {name: value for name, value in figures.items() if value is not None}
    figures = {
        "of": found.of,
        "seconds": found.seconds,
        "start_seconds": found.start,
        "rounds": [dict(row) for row in found.rounds],
        "stages": stages,
        "memory_bytes": max(found.memory.values(), default=None),
        "disk": {"least_bytes": found.disk[0], "most_bytes": found.disk[1], "peak_bytes": found.disk_peak},
        "cost_eur": found.cost,
        "endpoints_cost": found.paid,
        "advice": found.advice,
        "assumes": list(found.assumes),
    }
    return {name: value for name, value in figures.items() if value is not None}


def view(found: Estimate) -> RenderableType:
    """A table of stages, and below it what matters besides."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "a round", "in all", "memory at most", ""):
        lines.add_column(name, justify="left" if name in {"stage", ""} else "right", no_wrap=True)
    whole = found.seconds or 1.0
    start = {"start": found.start} if found.start else {}
    for stage, spent in {**start, **found.stages}.items():
        if stage == "other" and not spent:
            continue
        each = None if stage == "start" else found.per_round(stage)
        share = spent / whole
        lines.add_row(
            stage,
            "–" if each is None else duration(each),
            duration(spent),
            size(found.memory[stage]) if stage in found.memory else "–",
            "█" * round(20 * share) + f" {share:.0%}",
        )
    most = max(found.memory.values(), default=None)
    lines.add_section()
    lines.add_row("whole run", "", duration(found.seconds), "–" if most is None else size(most), "", style="bold")
    least, last = found.disk
    disk = size(last) if last - least < 0.05 * last else f"{size(least)} to {size(last)}"
    below = [f"disk: {disk} stay, {size(found.disk_peak)} while it runs"]
    if found.cost is not None:
        below.append(f"cost: {found.cost:.2f} EUR")
    if found.paid is not None:
        below.append(f"endpoints: {found.paid:.2f} in the currency of their price, at most")
    if found.advice:
        below.append(found.advice)
    below += [f"assumes: {line}" for line in found.assumes]
    return Group(lines, *(Text(line) for line in below))


def duration(seconds: float) -> str:
    """``0.4 s``, ``38 s``, ``4 min 10 s``, ``3 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
