"""Browsing at scale: how long the page of `raftune view` takes to answer a filter over a round of a million candidates.

The run is the one that ``bench/books.py`` builds and books (40 tokens and 150 characters an output). ``shelf``: the
search alone, in one process, every question for the first time; the first of all also opens DuckDB. ``page``: from a
person's key or click in headless Chromium until the page shows the new count, server and network of this machine
included.

    python bench/shelf.py                 # the search
    python bench/shelf.py --page          # the page, too (make test-ui's environment, Chromium)
    python bench/shelf.py --keep runs/million   # build the run there once, and use it again
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

QUESTIONS: dict[str, dict[str, Any]] = {
    "everything": {},
    "a word in the answer": {"text": "w0123"},
    "a word that is nowhere": {"text": "nowhere to be found"},
    "a part of the prompt": {"prompt": "number 12345"},
    "a prompt's id": {"prompt": "p00012345"},
    "chosen": {"chosen": True},
    "reward at least 1": {"low": 1.0},
    "highest reward first": {"order": "highest reward first"},
    "word, chosen, reward, order": {"text": "W0123", "chosen": True, "low": 0.5, "order": "highest reward first"},
}


def built(folder: Path, rows: int) -> None:
    """A run directory with one committed round of so many candidates."""
    for step in ("build", "books"):
        command = [sys.executable, str(Path(__file__).with_name("books.py")), "--step", step, "--rows", str(rows)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run([*command, "--folder", str(folder)], check=True, stdout=subprocess.DEVNULL, env=environment)


def searched(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds of each question and of its first page, and how many fit."""
    from raftune.ui.shelf import Question, Shelf

    shelf, found = Shelf(folder), {}
    for name, asked in QUESTIONS.items():
        start = time.perf_counter()
        hits = shelf.find(Question(**asked))
        shelf.page(hits, 0, 20)
        found[name] = {"seconds": time.perf_counter() - start, "hits": len(hits)}
    return found


def paged(folder: Path) -> dict[str, dict[str, float]]:
    """The same through the page, as far as one text field asks for it."""
    from playwright.sync_api import sync_playwright

    hits = {name: figures["hits"] for name, figures in searched(folder).items()}
    labels = {"text": "Answer contains", "prompt": "Prompt contains, or its id", "low": "Reward at least"}
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("raftune")), "view", str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    found = {}
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page()
            page.goto(server.stdout.readline().split()[0])
            _shows(page, hits["everything"])
            for name, asked in QUESTIONS.items():
                key, value = next(iter(asked.items()), ("", None))
                if len(asked) != 1 or key not in labels:
                    continue
                field = page.get_by_label(labels[key])
                field.fill(str(value))
                start = time.perf_counter()
                field.press("Enter")
                _shows(page, hits[name])
                found[name] = {"seconds": time.perf_counter() - start, "hits": hits[name]}
                field.fill("")
                field.press("Enter")
                _shows(page, hits["everything"])
            browser.close()
    finally:
        server.terminate()
        server.communicate()
    return found


def _shows(page: Any, hits: float) -> None:
    """Wait until the page says that so many fit."""
    told = f" of {hits:,.0f}" if hits else "nothing fits"
    page.wait_for_function("told => document.querySelector('#found')?.innerText.trim().endsWith(told.trim())", arg=told)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--keep", type=Path, help="where the run stays")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch) / "run"
        if not (folder / "rounds").is_dir():
            built(folder, options.rows)
        sides = {"shelf": searched} | ({"page": paged} if options.page else {})
        for side, work in sides.items():
            for name, figures in work(folder).items():
                print(json.dumps({"side": side, "question": name, **{k: round(v, 3) for k, v in figures.items()}}))


if __name__ == "__main__":
    main()
