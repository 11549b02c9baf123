"""The stages as commands of their own, on files. Heavy imports stand inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import files
from .commands import Out, bars, check_out, console, say_dropped, written
from .errors import UserError
from .exits import exits

if TYPE_CHECKING:
    from .types import Prompt

stages = typer.Typer()

PolicyOption = Annotated[
    str, typer.Option("--policy", help="Model or pipeline folder, adapter folder, hub id or asset:NAME.")
]
PromptsOption = Annotated[str, typer.Option("--prompts", help=".jsonl, .parquet or a Hub dataset.")]
RewardOption = Annotated[
    list[str],
    typer.Option(
        "--reward",
        help="path.py:function, module:function, vader, classifier:MODEL, classified:MODEL, math:COLUMN, "
        "regex:PATTERN, length:LO-HI, repetition, json, json-schema:FILE; of pictures also clip:MODEL, aesthetic:HEAD, "
        "pickscore, imagereward, image-classifier:MODEL, correct:MODEL, jpeg-compressibility, jpeg-incompressibility; "
        "may be repeated.",
    ),
]
Tokens = Annotated[int | None, typer.Option(min=1, help="Text: new tokens at most (64).")]
Backend = Annotated[str | None, typer.Option(help="Text: what draws: text, vllm (docs/vllm.md), module:Class.")]
Url = Annotated[str | None, typer.Option(help="Text: the `vllm serve` that draws, with --backend vllm.")]
Side = Annotated[int | None, typer.Option(min=1, help="Pictures: pixels.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Pictures: steps of the scheduler.")]
Guidance = Annotated[float | None, typer.Option(help="Pictures: classifier-free guidance.")]
Scheduler = Annotated[str | None, typer.Option(help="Pictures: a diffusers scheduler that fits.")]


@stages.command()
@exits
def sample(
    policy: PolicyOption,
    prompts: PromptsOption,
    out: Out,
    k: Annotated[int, typer.Option(min=1, help="Candidates per prompt.")] = 8,
    max_new_tokens: Tokens = None,
    temperature: Annotated[float | None, typer.Option(help="Text: λ (1); must be > 0 (greedy: --top-k 1).")] = None,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text: stop string; may be repeated.")] = None,
    backend: Backend = None,
    url: Url = None,
    height: Side = None,
    width: Side = None,
    steps: Steps = None,
    guidance: Guidance = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Pictures: what to keep away from.")] = None,
    scheduler: Scheduler = None,
    seed: int = 0,
    column: Annotated[str, typer.Option(help="The column that holds the prompt.")] = "prompt",
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Longer prompts are dropped and counted.")] = 1024,
) -> None:
    """Sample K candidates of each prompt."""
    from . import table

    options = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "stop": tuple(stop) if stop else None,
        "backend": backend,
        "url": url,
        "height": height,
        "width": width,
        "steps": steps,
        "guidance": guidance,
        "negative_prompt": negative_prompt,
        "scheduler": scheduler,
    }
    check_out(out)
    located, modality, sampler = _sampler(policy, options)
    usable = _prompts(prompts, column, modality.prompt_length(located), max_prompt_tokens)
    with bars():
        candidates = sampler.sample(located, usable, k, (seed, "sample"))
    table.write_candidates(out, candidates, modality.codec)
    written(out, len(candidates), "candidates")


def _sampler(policy: str, options: dict[str, Any]) -> tuple[str, Any, Any]:
    """Where the policy lies, its modality, and the sampler that these options ask for."""
    from . import pick
    from .config import RECIPES
    from .recipe import validated

    located = pick.model(policy)
    name = pick.modality_of(located)
    given = {key: value for key, value in options.items() if value is not None}
    kind = type(RECIPES[name].model_fields["sample"].default)
    for key in given:
        if key not in kind.model_fields:
            raise UserError(f"--{key.replace('_', '-')}: is not for a policy that makes {name}")
    config = validated(kind, given, "sample")
    return located, pick.modality(name), pick.sampler(config)


def _prompts(path: str, column: str, length: Any, limit: int) -> list[Prompt]:
    from .prompts import parse, read_rows, tidy

    usable, counts = tidy(parse(read_rows(path), column), length, limit)
    say_dropped(console(), counts)
    if not usable:
        raise UserError(f"{path}: no usable prompt")
    return usable


@stages.command()
@exits
def score(
    candidates: Annotated[Path, typer.Option("--candidates", help="What `sample` wrote.")],
    reward: RewardOption,
    out: Out,
    kl_coefficient: Annotated[float, typer.Option(min=0, help="β: less β·log(p/p0), p0 the --initial policy.")] = 0.0,
    initial: Annotated[str | None, typer.Option(help="Text: the policy that log-probabilities compare to.")] = None,
) -> None:
    """Score candidates with one or more rewards (weight 1 each)."""
    from . import pick, table
    from .config import RewardConfig

    check_out(out)
    codec = pick.modality(pick.modality_in(candidates)).codec
    rewards = pick.rewards([RewardConfig(use=spec) for spec in reward])
    if kl_coefficient and initial is None:
        raise UserError("--kl-coefficient: needs --initial, the policy that log-probabilities compare to")
    if kl_coefficient and initial is not None:
        rewards = pick.kl_shaped(rewards, kl_coefficient, pick.model(initial))
    with bars():
        scored = rewards(table.read_candidates(candidates, codec))
    table.write_scored(out, scored, codec)
    written(out, len(scored), "scored candidates")


@stages.command()
@exits
def select(
    scored: Annotated[Path, typer.Option("--scored", help="What `score` wrote.")],
    out: Out,
    rule: Annotated[str, typer.Option(help="best, best:N, top:FRACTION, above:REWARD, random.")] = "best",
    skip_tied: Annotated[bool, typer.Option(help="Leave out prompts whose candidates all tie.")] = False,
    floor: Annotated[float | None, typer.Option(help="What scores below is never chosen.")] = None,
    finished: Annotated[bool, typer.Option("--finished", help="Text: only what ended by itself.")] = False,
    max_repetition: Annotated[float | None, typer.Option(help="Text: share of repeated word 3-grams.")] = None,
    min_length: Annotated[int | None, typer.Option(min=0, help="Text: words at least.")] = None,
    max_length: Annotated[int | None, typer.Option(min=0, help="Text: words at most.")] = None,
    deduplicate: Annotated[bool, typer.Option("--deduplicate", help="Text: equal outputs count once.")] = False,
    regex: Annotated[str | None, typer.Option(help="Text: only where this pattern is found.")] = None,
    without: Annotated[str | None, typer.Option(help="Text: only where this one is not.")] = None,
    seed: int = 0,
) -> None:
    """Choose what to learn from."""
    from . import pick, rank, table
    from .config import RECIPES
    from .ledger import ScoredTable
    from .recipe import validated

    check_out(out)
    modality = pick.modality_in(scored)
    codec = pick.modality(modality).codec
    ends = None if min_length is None and max_length is None else (min_length or 0, max_length)
    filters = {"finished": finished or None, "repetition": max_repetition, "length": ends}
    filters |= {"deduplicate": deduplicate or None, "regex": regex, "without": without}
    given = {"rule": rule, "skip_tied": skip_tied, "floor": floor}
    if any(value is not None for value in filters.values()):
        given["filters"] = {name: value for name, value in filters.items() if value is not None}
    select = pick.select(validated(type(RECIPES[modality].model_fields["select"].default), given, "select"))
    chosen = rank.choose(select, ScoredTable([scored], codec), (seed, "select"))
    table.write_chosen(out, chosen, codec)
    written(out, len(chosen), "chosen candidates")


@stages.command()
@exits
def tune(
    policy: PolicyOption,
    chosen: Annotated[Path, typer.Option("--chosen", help="What `select` wrote.")],
    out: Out,
    learning_rate: float = 2e-5,
    epochs: Annotated[int | None, typer.Option(min=1, help="Text: passes (1).")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Pictures: optimiser steps (100).")] = None,
    max_epochs: Annotated[int | None, typer.Option(min=1, help="Pictures: passes at most (10).")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    lora: Annotated[
        bool | None, typer.Option("--lora/--full", help="An adapter (default for pictures) or all parameters (text).")
    ] = None,
    lora_r: Annotated[int, typer.Option(min=1)] = 16,
    seed: int = 0,
) -> None:
    """Fine-tune a policy on what was chosen."""
    from . import pick, table
    from .config import RECIPES, LoraConfig
    from .recipe import validated

    check_out(out, folder=True)
    modality = pick.modality_in(chosen)
    kind = type(RECIPES[modality].model_fields["tune"].default)
    options = {"epochs": epochs, "steps": steps, "max_epochs": max_epochs}
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in kind.model_fields:
            raise UserError(f"--{name.replace('_', '-')}: is not for {modality}")
    usual = kind().lora
    strength = (usual or LoraConfig()).alpha / (usual or LoraConfig()).r  # as strong as in a recipe
    wanted = usual is not None if lora is None else lora
    settings = {"r": lora_r, "alpha": round(strength * lora_r)} if wanted else None
    given |= {"learning_rate": learning_rate, "batch_size": batch_size, "lora": settings}
    learner = pick.learner(validated(kind, given, "tune"))
    with bars():
        scored = table.read_scored(chosen, pick.modality(modality).codec)
        learner.tune(pick.model(policy), scored, out, (seed, "tune"))
    console().print(f"{out}: tuned policy", highlight=False)


@stages.command()
@exits
def evaluate(
    policy: PolicyOption,
    prompts: PromptsOption,
    reward: RewardOption,
    out: Out,
    monitor: Annotated[
        list[str] | None, typer.Option(help="A scorer that only watches, written like a reward; may be repeated.")
    ] = None,
    initial: Annotated[str | None, typer.Option(help="Perplexity and KL are against this policy.")] = None,
    k: Annotated[int, typer.Option(min=1)] = 1,
    max_new_tokens: Tokens = None,
    backend: Backend = None,
    url: Url = None,
    height: Side = None,
    width: Side = None,
    steps: Steps = None,
    guidance: Guidance = None,
    scheduler: Scheduler = None,
    seed: int = 0,
    column: str = "prompt",
    reference: Annotated[str, typer.Option(help="The column of reference answers, where there is one.")] = "reference",
) -> None:
    """Reward, fluency, diversity and KL of a policy on prompts."""
    from . import pick
    from .config import RewardConfig
    from .figures import said_of
    from .score import Rewards

    options = {
        "max_new_tokens": max_new_tokens,
        "backend": backend,
        "url": url,
        "height": height,
        "width": width,
        "steps": steps,
        "guidance": guidance,
        "scheduler": scheduler,
    }
    check_out(out)
    rewards = pick.rewards([RewardConfig(use=spec) for spec in reward])
    monitors = pick.rewards([RewardConfig(use=spec) for spec in monitor]) if monitor else None
    Rewards((*rewards.members, *(monitors.members if monitors else ())))  # no two of one name
    located, modality, sampler = _sampler(policy, options)
    if initial is not None and not modality.compares:
        raise UserError("--initial: pictures have no perplexity or KL to compare by")
    usable = _prompts(prompts, column, None, 0)
    with bars():
        candidates = sampler.sample(located, usable, k, (seed, "heldout"))
        scored = monitors.watch(rewards(candidates)) if monitors else rewards(candidates)
        figures = modality.appraise(scored, located, pick.model(initial) if initial else located, reference)
        figures |= said_of(scored, monitors)
    files.write_json(out, {f"heldout/{name}": value for name, value in figures.items()})
    for name, value in figures.items():
        console().print(f"{name:>14}  {value:.4g}", highlight=False)
