"""The commands that hand a run on. Heavy imports stand inside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .commands import Out, bars, check_out, console, written
from .errors import UserError
from .exits import exits

if TYPE_CHECKING:
    from .share.push import Parcel

sharing = typer.Typer()

RunArgument = Annotated[Path, typer.Argument(help="A run directory; it may be one that goes on.")]
Merge = Annotated[bool, typer.Option("--merge", help="An adapter and its base as one model, in float32.")]
BaseId = Annotated[str | None, typer.Option("--base", help="The Hub id of the model that the run began with.")]

OPTIONS = {  # what each is for
    "--all": {"sft", "imagefolder"},
    "--margin": {"pairs"},
    "--generator": {"alpacaeval"},
    "--merge": {"policy"},
    "--base": {"policy"},
}
FOLDERS = {"imagefolder", "policy"}
NOTES = 3  # that are told one by one


@sharing.command()
@exits
def export(
    run: RunArgument,
    out: Out,
    kind: Annotated[
        Literal["sft", "pairs", "alpacaeval", "imagefolder", "policy"],
        typer.Option("--format", help="Of texts sft, pairs, alpacaeval; of pictures imagefolder; policy of both."),
    ],
    numbers: Annotated[
        list[int] | None,
        typer.Option("--round", min=0, help="May be repeated. Default: all; for alpacaeval and policy the best one."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all/--chosen", help="sft, imagefolder: all that was scored, or what was chosen.")
    ] = False,
    margin: Annotated[
        float, typer.Option(min=0, help="pairs: rewards that differ by no more than this make none.")
    ] = 0.0,
    generator: Annotated[str | None, typer.Option(help="alpacaeval: the model's name.")] = None,
    merge: Merge = False,
    base: BaseId = None,
) -> None:
    """Hand on what a run chose, ranked or answered, or its policy, in the format of another tool."""
    from .files import replacing_folder
    from .report.record import Record
    from .share import export as exporting
    from .share.policy import lay_out, policy_of

    given = {"--all": everything, "--margin": margin > 0, "--generator": generator, "--merge": merge, "--base": base}
    for option in [name for name, value in given.items() if value]:
        if kind not in OPTIONS[option]:
            raise UserError(f"{option}: is not for --format {kind}, but for {', '.join(sorted(OPTIONS[option]))}")
    asked = numbers or []
    if kind in {"alpacaeval", "policy"} and len(asked) > 1:
        raise UserError(f"--round: {kind} is of one round; name one")
    record = Record.of(run)
    _check(out, kind)
    if kind == "policy":
        chosen, policy = policy_of(record, next(iter(asked), None))
        with replacing_folder(out) as part:
            notes = lay_out(record, chosen, policy, part, merge, base)
        _say(notes)
        console().print(f"{out}: policy of round {chosen}", highlight=False, soft_wrap=True)
        return
    with bars():
        report = exporting.write(record, kind, out, exporting.Request(asked, everything, margin, generator))
    _say(report.left_out)
    written(out, report.counts[kind], "pairs" if kind == "pairs" else "rows")


@sharing.command()
@exits
def push(
    run: RunArgument,
    to: Annotated[
        str | None, typer.Option("--to", help="Repository, NAME or OWNER/NAME; default: the run's name.")
    ] = None,
    what: Annotated[Literal["model", "dataset", "both"], typer.Option(help="What is uploaded.")] = "model",
    numbers: Annotated[
        list[int] | None,
        typer.Option("--round", min=1, help="Default: the best policy, the data of all rounds; several: data alone."),
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository; default: the owner's.")
    ] = None,
    merge: Merge = False,
    base: BaseId = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Leave what would be uploaded in RUN/hub, and say it.")
    ] = False,
) -> None:
    """Upload a run's policy, or what it chose and ranked, to the Hub, with a card."""
    from .report.record import Record
    from .share import push as pushing

    asked = numbers or []
    if len(asked) > 1 and what != "dataset":
        raise UserError("--round: a policy is of one round; name one, or --what dataset")
    if (merge or base) and what == "dataset":
        raise UserError("--merge, --base: are for the policy, and --what is dataset")
    record = Record.of(run)
    name = to or record.name
    pushing.check_name(name)
    parcels: list[Parcel] = []
    with bars():
        if what != "dataset":
            parcels.append(pushing.model(record, next(iter(asked), None), merge, base))
        if what != "model":
            parcels.append(pushing.data(record, asked))
    for parcel in parcels:
        _say(parcel.notes)
        if dry_run:
            for file, size in parcel.files:
                console().print(f"{parcel.folder / file}  {size:,} bytes", highlight=False, soft_wrap=True)
            continue
        address = pushing.upload(parcel, name, private)
        shutil.rmtree(parcel.folder)
        console().print(f"{address}: {parcel.kind}", highlight=False, soft_wrap=True)


def _check(out: Path, kind: str) -> None:
    """Before any work: nothing that is not an earlier export is overwritten."""
    from .share import card, formats

    if kind in FOLDERS or (kind in formats.TOLD and not out.suffix):
        check_out(out, True, lambda folder: card.is_ours(folder / card.NAME), "an earlier export")
        return
    check_out(out)
    if out.exists() and out.stat().st_size and _names(out) != list(formats.COLUMNS[kind]):
        raise UserError(f"--out {out}: holds something else than an earlier export of {kind}; name another file")


def _names(path: Path) -> list[str]:
    """The columns of a file, as far as it tells."""
    from . import table

    try:
        if path.suffix == ".parquet":
            return table.columns_of(path)
        with path.open("rb") as file:
            lines = [line.strip(b"[,\r\n ") for line in (file.readline(), file.readline())]
        return list(json.loads(next(line for line in lines if line)))
    except (UserError, ValueError, TypeError, StopIteration):
        return []


def _say(notes: Sequence[str]) -> None:
    for line in notes[:NOTES]:
        console().print(f"note: {line}", highlight=False, soft_wrap=True)
    if len(notes) > NOTES:
        console().print(f"note: and {len(notes) - NOTES} more", highlight=False)
