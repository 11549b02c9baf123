"""The command line: thin. Heavy imports stand inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .exits import exits
from .preparation import preparation
from .stages import console, say_dropped, stages
from .studies import studies

if TYPE_CHECKING:
    from rich.console import Console

    from .config import Recipe
    from .prompts import Prompts

app = typer.Typer(
    help="Reward-ranked fine-tuning (RAFT, arXiv 2304.06767): sample K answers per prompt, rank them with a reward, "
    "fine-tune on the best, repeat.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(stages)
app.add_typer(studies)
app.add_typer(preparation)


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    pass


@app.command()
@exits
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML).")],
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; overrides the recipe's `out`.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, like sample.k=16; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check files, model and reward on two samples; stop.")
    ] = False,
) -> None:
    """Run a recipe, or resume it where its directory holds a run of the same recipe."""
    from . import experiment, show
    from . import recipe as recipes
    from .build import Parts

    terminal = console()
    parsed = recipes.load(recipe, change or [])
    parts = Parts(parsed, recipe.parent)
    if dry_run:
        for what, finding in experiment.dry_run(parts):
            terminal.print(f"[bold]{what}[/bold]  ", end="")
            terminal.print(finding, markup=False, highlight=False)
        terminal.print("[green]ready[/green]")
        return
    folder = out or (Path(parsed.out) if parsed.out else Path("runs") / recipe.stem)
    experiment_ = experiment.Experiment.open(parts, folder)
    with experiment_.run:
        say_dropped(terminal, parts.prompts.counts)
        terminal.print(_plan(parsed, parts.prompts, folder), highlight=False, soft_wrap=True)
        view = show.Show(terminal, parts.watched)
        with view.live():
            for row in experiment_.rounds():
                view.round(row)
        _conclude(terminal, experiment_, folder)


def _plan(recipe: Recipe, prompts: Prompts, folder: Path) -> str:
    sample = recipe.sample
    return (
        f"{folder}: up to {recipe.rounds} rounds of {sample.prompts_per_round} prompts × {sample.k}, "
        f"{len(prompts.train)} prompts to train, {len(prompts.heldout)} held out"
    )


def _conclude(terminal: Console, experiment_: Any, folder: Path) -> None:
    best, last = experiment_.run.best(), experiment_.run.last
    shown = best or last  # where nothing got better, a person wants to see what did happen
    before, after = experiment_.evaluated(0), experiment_.evaluated(shown)
    if before and after:
        terminal.print(experiment_.parts.modality.exhibit(before, after, shown, folder), highlight=False)
    where = folder / "best" if (folder / "best").exists() else experiment_.parts.model
    terminal.print(f"best policy: {where} (round {best} of {last})", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
