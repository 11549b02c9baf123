"""What README and guides show is run as it stands, with a tiny model where it says path/to/model."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raftune.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, title and text of a page's code."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


RUN = [page for page in PAGES if page.parent != DOCS and any(language == "bash" for language, *_ in blocks(page))]


def test_the_example_runs(tmp_path: Path, tiny: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.strip().splitlines()) <= 20
    (tmp_path / "example.py").write_text(example.replace("path/to/model", str(tiny)))
    result = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, start=1):
        assert line.startswith(f"round {number}:")
    assert (tmp_path / "runs" / "mine" / "rounds" / "0003" / "policy" / "model.safetensors").exists()


def test_the_start_page_shows_the_same_example() -> None:
    (example,) = re.findall(r"```python\n.*?```", README, flags=re.DOTALL)
    assert example in (DOCS / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_guides_run(page: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks with a title are files; those of bash are commands, one a line. In this process, which has torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    commands: list[str] = []
    for language, title, text in blocks(page):
        text = text.replace("path/to/model", str(tiny))
        if title:
            Path(title).write_text(text, encoding="utf-8")
        elif language == "bash":
            commands += text.splitlines()
    before = set(sys.modules)
    for command in commands:
        program, *arguments = shlex.split(command)
        programs[program](*arguments)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]  # two pages may both have a my_rewards


def run_raftune(*arguments: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (arguments, result.output, result.exception)


def run_python(script: str) -> None:
    runpy.run_path(script, run_name="__main__")


programs: dict[str, Callable[..., None]] = {"raftune": run_raftune, "python": run_python}


def test_links_and_files_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
