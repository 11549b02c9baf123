"""The command that serves a page. Heavy imports stand inside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .commands import console
from .errors import UserError
from .exits import exits

viewing = typer.Typer()

HERE = {"127.0.0.1", "localhost", "::1"}


@viewing.command()
@exits
def view(
    run: Annotated[Path, typer.Argument(help="A run directory; it may be one that goes on.")],
    other: Annotated[
        Path | None, typer.Argument(help="With --blind: what it is compared with; default: its own start.")
    ] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Judge pairs without knowing whose they are.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --blind: where pairs and votes are kept; default: RUN/blind.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve on; any but this machine's own needs --token.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="RAFTUNE_TOKEN", help="What a person must give as the password.")
    ] = None,
    seed: Annotated[int, typer.Option(help="With --blind: of the order of the pairs.")] = 0,
) -> None:
    """Browse every candidate of a run, or judge pairs of answers blind, in a local page."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is sent anywhere
    if host not in HERE and not token:
        raise UserError(f"--host {host}: others can reach that address; give a --token")
    if (other or out) and not blind:
        raise UserError("view: a second run and --out go with --blind")
    try:
        from .ui.app import App
        from .ui.shelf import Shelf
    except ImportError as error:
        raise UserError(f"view: needs the package {error.name}; pip install 'raftune[ui]'") from None
    shelf = Shelf(run)
    trial = None
    if blind:
        from .ui.trial import prepared

        trial = prepared(out or run / "blind", run, other, seed)
    terminal = console()

    def ready(address: str) -> None:
        terminal.print(f"{address}  (Ctrl+C ends it)", highlight=False, soft_wrap=True)

    App(shelf, trial).serve(host, port, token, ready)
