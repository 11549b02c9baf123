"""Imports point one way, and the loop, the words and the store know neither torch nor a modality."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "raftune"
MODULES = sorted(path.relative_to(SOURCE).with_suffix("").as_posix() for path in SOURCE.rglob("*.py"))
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "diffusers",
    "vllm",
    "ray",
    "trl",
    "sklearn",
    "matplotlib",
    "openai",
    "tensorboard",
    "trackio",
    "wandb",
    "mlflow",
}
BACKENDS = ("sample/", "reward/", "tune/", "evaluate/", "track/")

MEASURES = {f"evaluate/{name}" for name in ("agreement", "best_of_n", "judge", "votes", "winrate")}

# What each of these may import of ours. Everything that is not listed is a tool of the backends.
ALLOWED = {
    "errors": set(),
    "types": set(),
    "files": {"errors"},
    "interrupt": {"errors"},
    "progress": set(),
    "memory": set(),
    "protocols": {"types"},
    "columns": {"types"},
    "entry": {"columns"},
    "rank": {"columns", "errors", "protocols", "types"},
    "filters": {"columns", "errors", "protocols", "rank", "types"},
    "score": {"columns", "errors", "protocols", "types"},
    "prompts": {"errors", "types"},
    "preferences": {"errors", "prompts", "types"},
    "demonstrations": {"errors", "preferences", "prompts", "types"},
    "rows": {"errors", "protocols", "types"},
    "stored": {"columns", "rows"},
    "ledger": {"columns", "errors", "files", "protocols", "rows", "stored", "types"},
    "table": {"files", "ledger", "protocols", "rows", "types"},
    "picture": {"errors", "files"},
    "beside": {"errors", "interrupt"},
    "round_folder": {
        *("beside", "columns", "files", "interrupt", "ledger", "memory", "progress"),
        *("protocols", "score", "table", "types"),
    },
    "store": {
        *("columns", "errors", "files", "interrupt", "ledger", "memory"),
        *("protocols", "round_folder", "table", "types"),
    },
    "loop": {"protocols", "rank", "score", "store", "types"},
    "strict": set(),
    "sources": {"strict"},
    "serving": {"strict"},
    "sampling": {"serving", "sources", "strict"},
    "config": {"sampling", "serving", "sources", "strict"},
    "recipe": {"config", "errors", "sources"},
    "pool": {"errors", "prompts", "types"},
    "endpoint": {"errors", "interrupt", "progress"},
    "provenance": {"columns", "types"},
    "bounds": set(),
    "rates": set(),
    "estimate": set(),
    "advice": {"estimate"},
    "clock": {"memory", "progress"},
}
LIGHT = [
    *ALLOWED,
    "experiment",
    "build",
    "cli",
    "captions",
    "commands",
    "diffusion_arguments",
    "handover",
    "trainer_log",
    "pick/__init__",
    "pick/modalities",
    "pick/parts",
    "pick/places",
    "pick/scorers",
    "pick/trackers",
    "tracking",
    "outlook",
    "preparation",
    "stages",
    "stream",
    "show",
    "imports",
    "__init__",
    "studies",
    "compare",
    "contrast",
    "sides",
    "evaluate/agreement",
    "evaluate/best_of_n",
    "evaluate/diversity",
    "evaluate/judge",
    "evaluate/votes",
    "evaluate/winrate",
    "reward/checks",
    "reward/child",
    "reward/form",
    "reward/functions",
    "reward/jpeg",
    "reward/json_answer",
    "reward/math_answer",
    "reward/pictures",
    "reward/texts",
    "sample/endpoint",
    "sample/mixture",
    "sample/pool",
    "share/base",
    "share/card",
    "share/export",
    "share/formats",
    "share/policy",
    "share/push",
    "share/rounds",
    "sharing",
]


def imports(module: str, inside_functions: bool) -> set[str]:
    """Absolute names as they stand; ours as paths below src/raftune."""
    tree = ast.parse((SOURCE / f"{module}.py").read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nested = {inner for node in ast.walk(tree) if isinstance(node, functions) for inner in ast.walk(node)}
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only or (node in nested and not inside_functions):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = Path(module).parts[: len(Path(module).parts) - node.level]
            if node.module:
                found.add("raftune:" + "/".join([*base, *node.module.split(".")]))
            else:
                found |= {"raftune:" + "/".join([*base, alias.name]) for alias in node.names}
    return found


def ours(module: str) -> set[str]:
    return {name.removeprefix("raftune:") for name in imports(module, True) if name.startswith("raftune:")}


def test_the_reader_sees_what_is_there() -> None:
    assert {"torch", "raftune:models"} <= imports("sample/text", False)
    assert "raftune:sample/draw" in imports("sample/text", False)
    assert "torch" not in imports("assets", False)
    assert "torch" in imports("assets", True)


@pytest.mark.parametrize("module", ALLOWED)
def test_the_inner_rooms_import_what_they_may(module: str) -> None:
    assert ours(module) <= ALLOWED[module]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert not imports(module, False) & HEAVY


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(BACKENDS)])
def test_backends_know_neither_each_other_nor_the_loop(module: str) -> None:
    room = module.split("/")[0]
    for name in ours(module):
        assert name not in {"loop", "store", "build", "pick", "cli", "stages", "experiment", "config", "recipe"}
        assert not any(name.startswith(other) for other in BACKENDS if other != f"{room}/")


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("pick/") and m != "__init__"])
def test_only_one_place_picks_implementations(module: str) -> None:
    """No module outside a room imports what is inside it, but pick (and the lazy names of the package).

    Measures of any outputs are no implementation of anything: there is nothing to pick.
    """
    inside = {name for name in ours(module) if name.startswith(BACKENDS)} - MEASURES
    assert all(module.startswith(name.split("/")[0]) for name in inside)


def test_the_loop_fits_on_a_page() -> None:
    assert len((SOURCE / "loop.py").read_text().splitlines()) < 80


def test_no_file_over_300_lines_and_no_function_over_60() -> None:
    for module in MODULES:
        text = (SOURCE / f"{module}.py").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, module
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{module}:{node.name}"
