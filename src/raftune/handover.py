"""A run from what a caller has at hand: rows, arguments and rewards in, a recipe and its run directory; weights out.

What the trainer with TRL's arguments and the script with diffusers' share. No torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import build, files, pick
from .errors import UserError
from .experiment import Experiment
from .recipe import parse
from .report.record import Record
from .score import Rewards
from .share.policy import lay_out
from .share.push import READY, Parcel, upload

log = logging.getLogger("raftune")

FOLDER = ".trainer"  # in the run directory: what was handed over in memory, as files
HELDOUT = 64  # prompts at most, where nobody says which
SCHEDULES = {  # the libraries' names, as they come without options of their own → the shape within a round
    "linear": "linear",
    "polynomial": "linear",  # power 1
    "cosine": "cosine",
    "cosine_with_restarts": "cosine",  # one cycle
    "constant": "constant",
    "constant_with_warmup": "constant",
}
Rows = Sequence[Mapping[str, Any]]


def schedule(name: str, where: str) -> str:
    """A library's schedule as a recipe says it. UserError where a round has no such shape."""
    if name not in SCHEDULES:
        raise UserError(f"{where}: {name} within a round is not there; use one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]


def prompts(folder: Path, rows: Rows, heldout: Rows | float | None) -> dict[str, Any]:
    """The recipe's section ``prompts`` for these rows, written below the run directory.

    ``heldout``: other rows, or how many (or which share) of these never train; None: a tenth, 64 at most.
    """
    section: dict[str, Any] = {"path": str(written(folder / FOLDER / "prompts.jsonl", rows).resolve())}
    if isinstance(heldout, Sequence):
        path = str(written(folder / FOLDER / "heldout.jsonl", heldout).resolve())
        return section | {"heldout": path, "disjoint": False}
    held = heldout or min(HELDOUT, max(1, len(rows) // 10))
    return section | {"heldout": int(held) if held >= 1 else held}


def written(path: Path, rows: Rows) -> Path:
    """The rows as JSON lines; what JSON has no word for becomes a text."""
    with files.replacing(path) as part:
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def experiment(
    recipe: Callable[[int], Mapping[str, Any]],
    where: str,
    folder: Path,
    given: Rewards | None = None,
    beside: Path = Path(),
) -> Experiment:
    """Open (or resume) the run of a recipe in ``folder``.

    Args:
        recipe: the recipe for so many prompts that train: rows less those held out, empty, twice there or too long.
        where: what a fault in the recipe is said of.
        given: the reward itself, where it is at hand and the recipe only names it.
        beside: where the recipe's paths are looked for first.
    """
    first = parse(recipe(1), where)
    length = pick.modality(first.modality).prompt_length(pick.model(first.model, beside))
    usable = build.prompts(first, length, beside, drawn=False)
    parts = build.Parts(parse(recipe(max(1, len(usable.train))), where), beside, folder, given=given)
    return Experiment.open(parts, folder)


def save(done: Experiment, number: int, target: Path, base: str | None = None) -> None:
    """Write the policy of a round into ``target``, beside what is there, as its library opens it; with a card, where
    there is none of another's. ``base``: the hub id of what it was tuned from, where only the caller knows it."""
    run = done.run
    for line in lay_out(Record.of(run.root), number, run.policy_of(number), target, base=base):
        log.warning("%s: %s", target, line)


def push(
    done: Experiment,
    number: int,
    name: str,
    base: str | None = None,
    token: str | None = None,
    private: bool | None = None,
    message: str = "RAFT",
    **options: Any,
) -> str:
    """Upload it to the hub repository ``name``, which is made where it is not there; its address. ``options``: of
    ``HfApi.upload_folder``."""
    ready = done.run.root / READY / "model"
    with files.replacing_folder(ready) as part:
        save(done, number, part, base)
    return upload(Parcel(ready, "model"), name, private, token, message, **options)
