"""What commands share: the terminal, its bars, and a look at where they will write."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import files
from .errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

Out = Annotated[Path, typer.Option("--out", help="Where to write.")]


def console() -> Console:
    """The terminal. What paths, settings, models and files say is text: no markup is read in it."""
    from rich.console import Console

    return Console(markup=False)


def bars() -> Any:
    from .show import Show

    return Show(console()).live()


def say_dropped(terminal: Console, counts: dict[str, int], what: str = "prompts") -> None:
    from .prompts import fallen

    if dropped := fallen(counts):
        terminal.print(f"{what} dropped: {dropped}", highlight=False)


def _tuned(out: Path) -> bool:
    return (out / files.FIGURES).exists()


def check_out(
    out: Path, folder: bool = False, ours: Callable[[Path], bool] = _tuned, what: str = "a tuned policy"
) -> None:
    """Before any work: can ``out`` be written, without anything of the user's being overwritten? A folder may hold
    what is ``ours``."""
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out {out}: {above} cannot be written to")
    if not folder and out.is_dir():
        raise UserError(f"--out {out}: is a directory; name a file")
    if folder and out.exists() and not ours(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: holds something else than {what}; name an empty or new directory")


def written(out: Path, count: int, what: str) -> None:
    console().print(f"{out}: {count} {what}", highlight=False, soft_wrap=True)
