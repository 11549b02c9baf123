"""The command line: thin. Heavy imports stand inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .commands import console, say_dropped
from .errors import UserError
from .exits import exits
from .outlook import outlook
from .preparation import preparation
from .sharing import sharing
from .stages import stages
from .studies import studies
from .viewing import viewing

if TYPE_CHECKING:
    from .config import Recipe

app = typer.Typer(
    help="Reward-ranked fine-tuning (RAFT, arXiv 2304.06767): sample K answers per prompt, rank them with a reward, "
    "fine-tune on the best, repeat.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(stages)
app.add_typer(studies)
app.add_typer(outlook)
app.add_typer(preparation)
app.add_typer(viewing)
app.add_typer(sharing)


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
            terminal.print(what, end="  ", style="bold", highlight=False)
            terminal.print(show.plain(finding), highlight=False)
        terminal.print("ready", style="green")
        return
    folder = _folder(parsed, recipe, out)
    parts = replace(parts, folder=folder)
    experiment_ = experiment.Experiment.open(parts, folder)
    with experiment_.run:
        say_dropped(terminal, parts.prompts.counts)
        terminal.print(show.plan(experiment_), highlight=False, soft_wrap=True)
        show.follow(terminal, experiment_)


@app.command()
@exits
def watch(
    folder: Annotated[Path, typer.Argument(help="Where another process writes candidates: .jsonl or .parquet files.")],
    recipe: Annotated[Path, typer.Option("--recipe", help="A recipe (YAML); its prompts are those held out.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; overrides the recipe's `out`.")] = None,
    shards: Annotated[int, typer.Option(min=1, help="Files that make a round.")] = 1,
    idle: Annotated[float, typer.Option(min=0, help="Seconds without a new file after which it ends.")] = 600,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, like rounds=100; may be repeated.")
    ] = None,
) -> None:
    """Rank and tune on candidates as they come in, until the folder holds a file DONE."""
    from . import experiment, show
    from . import recipe as recipes
    from .build import Parts
    from .stream import Stream

    terminal = console()
    parsed = recipes.load(recipe, change or [])
    if parsed.modality != "text" or parsed.sample.sources is not None:
        key = "sample.sources" if parsed.modality == "text" else "modality"
        raise UserError(f"{recipe}: {key}: watch takes its candidates, texts, from the folder; leave it out")
    where = _folder(parsed, recipe, out)
    parts = Parts(parsed, recipe.parent, where, shards)
    experiment_ = experiment.Experiment.open(parts, where)
    with experiment_.run:
        stream = Stream(parts, experiment_.run, folder, idle)
        held = len(parts.prompts.heldout)
        terminal.print(
            f"{where}: up to {parsed.rounds} rounds of {shards} shards of {folder}, {held} prompts held out",
            highlight=False,
            soft_wrap=True,
        )
        show.follow(terminal, experiment_, stream)


def _folder(recipe: Recipe, path: Path, out: Path | None) -> Path:
    return out or (Path(recipe.out) if recipe.out else Path("runs") / path.stem)


if __name__ == "__main__":
    app()
