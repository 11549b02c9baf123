"""Commands over several runs. Heavy imports stand inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import UserError
from .exits import exits
from .stages import console

studies = typer.Typer()


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
    seed: int = 0,
) -> None:
    """Win, tie and loss of two runs on the same held-out prompts, by a reward, a judge or people."""
    from . import compare as comparing
    from . import contrast, files, pick
    from .evaluate import votes
    from .show import Show
    from .sides import paired, side

    terminal = console()
    if initial == (b is not None):
        raise UserError("compare: give two, or one run and --initial" + ("; --initial stands for B" if initial else ""))
    if initial and round_b is not None:
        raise UserError("--round-b: with --initial, B is round 0")
    if (judge_model or judge_endpoint or judge_url) and by != "judge":
        raise UserError("--judge-…: is for --by judge")
    judge = pick.judge(judge_model, judge_endpoint, judge_url) if by == "judge" else None
    sides = {"a": side(a, round_a), "b": side(b or a, 0 if initial else round_b)}
    pairs, unpaired = paired(sides["a"], sides["b"])
    if judge and sides["a"].modality != "text":
        raise UserError("--by judge: reads texts only; compare pictures by a reward or by people")
    folder = comparing.opened(out)
    if by == "people":
        votes.write(folder, pairs, seed)
        terminal.print(
            f"{folder / votes.PAIRS}: {len(pairs)} pairs; whose is whose: {folder / votes.KEY}", soft_wrap=True
        )
        return
    with Show(terminal).live():
        if judge:
            found = comparing.by_judge(pairs, judge, folder)
        elif by.endswith(".jsonl"):
            found = comparing.by_votes(pairs, Path(by), folder)
        else:
            found = comparing.by_reward(pairs, by, margin)
    told = comparing.result(sides["a"], sides["b"], by, found, unpaired, seed)
    files.write_json(folder / "compare.json", told)
    terminal.print(contrast.view(told), highlight=False)
    terminal.print(f"{folder}: compare.json", highlight=False, soft_wrap=True)
    contrast.plot(told, sides, folder / "compare.png")  # last: all else stands, whether it can be drawn or not
