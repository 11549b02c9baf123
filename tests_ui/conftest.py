"""Debian's Chromium, a finished run, and the server as a person starts it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

RUN = Path(os.environ.get("RUN", "runs/quickstart"))
RUN_IMAGE = Path(os.environ.get("RUN_IMAGE", "runs/quickstart-image"))
PICTURES = Path(__file__).parent.parent / "runs" / "screenshots"


@pytest.fixture(scope="session")
def run() -> Path:
    """A run that `make quickstart` made."""
    return _made(RUN, "make quickstart first, or RUN=…")


@pytest.fixture(scope="session")
def drawn() -> Path:
    """A run of pictures that `make quickstart-image` made."""
    return _made(RUN_IMAGE, "make quickstart-image first, or RUN_IMAGE=…")


def _made(run: Path, mend: str) -> Path:
    if not (run / "rounds").is_dir():
        pytest.fail(f"{run}: no run; {mend}")
    return run.resolve()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])


class Server:
    """`raftune view` in a process of its own."""

    def __init__(self, *arguments: Any, **environment: str) -> None:
        command = [str(Path(sys.executable).with_name("raftune")), "view", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.address = line.split()[0] if line else ""
        assert self.address.startswith("http"), f"it said {line!r}"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=20)
        return self.process.returncode


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*arguments: Any, **environment: str) -> Server:
        started.append(Server(*arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()
