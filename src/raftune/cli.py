"""The command line: thin. Heavy imports stand inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import files
from .errors import UserError
from .exits import exits

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

Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
PolicyOption = Annotated[str, typer.Option("--policy", help="Model folder, adapter folder, hub id or asset:NAME.")]
PromptsOption = Annotated[str, typer.Option("--prompts", help=".jsonl, .parquet or a Hub dataset.")]
RewardOption = Annotated[
    list[str],
    typer.Option(
        "--reward",
        help="path.py:function, module:function, vader, classifier:MODEL; of pictures also clip:MODEL, aesthetic:HEAD, "
        "pickscore, imagereward, image-classifier:MODEL, correct:MODEL, jpeg-compressibility, jpeg-incompressibility; "
        "may be repeated.",
    ),
]


def _console() -> Console:
    from rich.console import Console

    return Console()


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
    from . import config, experiment, show
    from .build import Parts

    console = _console()
    parsed = config.load(recipe, change or [])
    parts = Parts(parsed, recipe.parent)
    if dry_run:
        for what, finding in experiment.dry_run(parts):
            console.print(f"[bold]{what}[/bold]  ", end="")
            console.print(finding, markup=False, highlight=False)
        console.print("[green]ready[/green]")
        return
    folder = out or (Path(parsed.out) if parsed.out else Path("runs") / recipe.stem)
    experiment_ = experiment.Experiment.open(parts, folder)
    with experiment_.run:
        _say_dropped(console, parts.prompts.counts)
        console.print(_plan(parsed, parts.prompts, folder), highlight=False, soft_wrap=True)
        view = show.Show(console)
        with view.live():
            for row in experiment_.rounds():
                view.round(row)
        _conclude(console, experiment_, folder)


def _plan(recipe: Recipe, prompts: Prompts, folder: Path) -> str:
    sample = recipe.sample
    return (
        f"{folder}: up to {recipe.rounds} rounds of {sample.prompts_per_round} prompts × {sample.k}, "
        f"{len(prompts.train)} prompts to train, {len(prompts.heldout)} held out"
    )


def _say_dropped(console: Console, counts: dict[str, int]) -> None:
    dropped = [f"{count} {rule}" for rule, count in counts.items() if count and rule not in {"rows", "heldout_rows"}]
    if dropped:
        console.print(f"prompts dropped: {', '.join(dropped)}", highlight=False)


def _conclude(console: Console, experiment_: Any, folder: Path) -> None:
    from . import experiment, show

    best, last = experiment_.run.best(), experiment_.run.last
    shown = best or last  # where nothing got better, a person wants to see what did happen
    before, after = experiment_.heldout(0), experiment_.heldout(shown)
    if before and after:
        pairs = experiment.demonstrate(before, after, 3, experiment_.parts.recipe.seed)
        console.print(show.before_after(pairs, shown))
    where = folder / "best" if (folder / "best").exists() else experiment_.parts.model
    console.print(f"best policy: {where} (round {best} of {last})", highlight=False, soft_wrap=True)


@app.command()
@exits
def sample(
    policy: PolicyOption,
    prompts: PromptsOption,
    out: Out,
    k: Annotated[int, typer.Option(min=1, help="Candidates per prompt.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="λ; must be > 0 (greedy: --top-k 1).")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop string; may be repeated.")] = None,
    seed: int = 0,
    column: Annotated[str, typer.Option(help="The column that holds the prompt.")] = "prompt",
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Longer prompts are dropped and counted.")] = 1024,
) -> None:
    """Sample K candidates of each prompt."""
    from . import build, table
    from .prompts import parse, read_rows, tidy

    options = {"max_new_tokens": max_new_tokens, "top_k": top_k, "top_p": top_p, "stop": tuple(stop or ())}
    try:
        sampler = build.sampler("text", temperature=temperature, **options)
        sampler.temper  # type: ignore[attr-defined]  # noqa: B018 - checks the ranges
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_out(out)
    located = build.model(policy)
    usable, counts = tidy(parse(read_rows(prompts), column), build.token_counter(located), max_prompt_tokens)
    _say_dropped(_console(), counts)
    if not usable:
        raise UserError(f"{prompts}: no usable prompt")
    with _bars():
        candidates = sampler.sample(located, usable, k, (seed, "sample"))
    table.write_candidates(out, candidates, table.TextCodec())
    _written(out, len(candidates), "candidates")


@app.command()
@exits
def score(
    candidates: Annotated[Path, typer.Option("--candidates", help="What `sample` wrote.")],
    reward: RewardOption,
    out: Out,
) -> None:
    """Score candidates with one or more rewards (weight 1 each)."""
    from . import build, table
    from .config import RewardConfig

    _check_out(out)
    codec = table.TextCodec()
    rewards = build.rewards([RewardConfig(use=spec) for spec in reward])
    with _bars():
        scored = rewards(table.read_candidates(candidates, codec))
    table.write_scored(out, scored, codec)
    _written(out, len(scored), "scored candidates")


@app.command()
@exits
def select(
    scored: Annotated[Path, typer.Option("--scored", help="What `score` wrote.")],
    out: Out,
    rule: Annotated[str, typer.Option(help="best, best:N, top:FRACTION, above:REWARD, random.")] = "best",
    skip_tied: Annotated[bool, typer.Option(help="Leave out prompts whose candidates all tie.")] = False,
    seed: int = 0,
) -> None:
    """Choose what to learn from."""
    from . import rank, table

    _check_out(out)
    codec = table.TextCodec()
    chosen = rank.choose(rank.parse_rule(rule, skip_tied), table.read_scored(scored, codec), (seed, "select"))
    table.write_scored(out, chosen, codec, {table.key_of(one) for one in chosen})
    _written(out, len(chosen), "chosen candidates")


@app.command()
@exits
def tune(
    policy: PolicyOption,
    chosen: Annotated[Path, typer.Option("--chosen", help="What `select` wrote.")],
    out: Out,
    learning_rate: float = 2e-5,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    lora: Annotated[bool, typer.Option("--lora", help="Train a LoRA adapter instead of all parameters.")] = False,
    lora_r: Annotated[int, typer.Option(min=1)] = 16,
    seed: int = 0,
) -> None:
    """Fine-tune a policy on what was chosen."""
    from . import build, table
    from .config import LoraConfig, TuneConfig

    _check_out(out, folder=True)
    if not learning_rate > 0:
        raise UserError(f"--learning-rate: must be > 0, got {learning_rate}")
    config = TuneConfig(
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        lora=LoraConfig(r=lora_r, alpha=2 * lora_r) if lora else None,
    )
    learner = build.learner("text", **config.model_dump(exclude={"backend"}))
    with _bars():
        learner.tune(build.model(policy), table.read_scored(chosen, table.TextCodec()), out, (seed, "tune"))
    _console().print(f"{out}: tuned policy", highlight=False)


@app.command()
@exits
def evaluate(
    policy: PolicyOption,
    prompts: PromptsOption,
    reward: RewardOption,
    out: Out,
    initial: Annotated[str | None, typer.Option(help="Perplexity and KL are against this policy.")] = None,
    k: Annotated[int, typer.Option(min=1)] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    seed: int = 0,
    column: str = "prompt",
) -> None:
    """Reward, fluency, diversity and KL of a policy on prompts."""
    from . import build, files
    from .config import RewardConfig
    from .evaluate.text import judge
    from .prompts import parse, read_rows, tidy

    _check_out(out)
    located = build.model(policy)
    rewards = build.rewards([RewardConfig(use=spec) for spec in reward])
    usable, counts = tidy(parse(read_rows(prompts), column))
    _say_dropped(_console(), counts)
    if not usable:
        raise UserError(f"{prompts}: no usable prompt")
    with _bars():
        candidates = build.sampler("text", max_new_tokens=max_new_tokens).sample(located, usable, k, (seed, "heldout"))
        figures = judge(rewards(candidates), build.model(initial) if initial else located)
    files.write_json(out, {f"heldout/{name}": value for name, value in figures.items()})
    for name, value in figures.items():
        _console().print(f"{name:>14}  {value:.4g}", highlight=False)


def _check_out(out: Path, folder: bool = False) -> None:
    """Before any work: can ``out`` be written, without anything of the user's being overwritten?"""
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out {out}: {above} cannot be written to")
    if not folder and out.is_dir():
        raise UserError(f"--out {out}: is a directory; name a file")
    if folder and out.exists() and not (out / files.FIGURES).exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: holds something else than a tuned policy; name an empty or new directory")


def _bars() -> Any:
    from .show import Show

    return Show(_console()).live()


def _written(out: Path, count: int, what: str) -> None:
    _console().print(f"{out}: {count} {what}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
