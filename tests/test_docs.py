"""The documentation against the code: every key and option is told, every figure is one that was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_group
from typer.testing import CliRunner

from raftune.cli import app
from raftune.config import RECIPES, flatten
from raftune.recipe import parse
from raftune.sources import USES

DOCS = Path(__file__).parent.parent / "docs"
NEEDED = "**needed**"
FENCES = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that stand anywhere in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in models_in(inner)]


def keys_of(model: type[BaseModel], prefix: str = "", of: BaseModel | None = None) -> Iterator[tuple[str, Any]]:
    """Each key with its default; sections by their keys, and by themselves where they may be absent."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        default = NEEDED if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        default = getattr(of, name) if of is not None else default
        inner = models_in(field.annotation)
        if key == "sample.sources":
            yield key, default
            for use, kind in USES.items():
                yield from ((f"{inner}@{use}", told) for inner, told in keys_of(kind, f"{key}.NAME."))
        elif isinstance(default, BaseModel):
            yield from keys_of(inner[0], f"{key}.", default)
        elif key == "reward":
            yield from keys_of(inner[0], f"{key}[].")
        elif key == "prompts":
            yield from keys_of(inner[0], f"{key}.")
        else:
            yield key, default
            place = f"{key}.NAME." if isinstance(default, dict) else f"{key}."
            for one in inner if key != "evaluate.monitor" else ():
                yield from keys_of(one, place)


def rows() -> Iterator[tuple[str, str, str, bool]]:
    """Section, key, default and whether it may change, of each row of the page."""
    section, use = "", ""
    for line in (DOCS / "recipe-keys.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## (.*)", line):
            section, use = heading[1], ""
        elif kind := re.match(r"### `use: (\w+)`", line):
            use = f"@{kind[1]}"
        elif row := re.match(r"\| `([^`]+)` \| (.*?) \| (.*) \|$", line):
            yield section, row[1] + use, row[2].strip("`"), "↻" in row[3]


def written(value: Any) -> str:
    """A default as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and 0 < value < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return "[]" if value == () else str(value)


@pytest.mark.parametrize(("modality", "section"), [("text", "Texts"), ("image", "Pictures")])
def test_every_key_of_a_recipe_is_told_with_its_default(modality: str, section: str) -> None:
    told = {key: default for where, key, default, _ in rows() if where in {"Both modalities", section, "Sources"}}
    wanted = {key: written(default) for key, default in keys_of(RECIPES[modality])}
    wanted |= {"modality": "text"}  # what it is where a recipe does not say
    assert told == {key: default for key, default in wanted.items() if ".use@" not in key}  # the heading tells


def test_what_may_change_is_marked() -> None:
    """By what a recipe's own identity leaves out."""
    endpoint = {"use": "endpoint", "k": 1, "model": "m", "price": {"input": 1, "output": 1}}
    recipe = parse(
        {
            "model": "m",
            "prompts": "p",
            "reward": ["vader"],
            "sample": {
                "backend": "vllm",
                "vllm": {},
                "halving": {"solved": 1},
                "sources": {"e": endpoint, "m": {"use": "model", "k": 1, "model": "m"}, "p": {"use": "policy", "k": 1}},
            },
            "select": {"filters": {}},
            "tune": {"lora": {}},
            "evaluate": {"also": {"far": {}}},
            "track": ["tensorboard"],
        }
    )
    kinds = {"e": "endpoint", "m": "model", "p": "policy"}
    named = {
        key: re.sub(
            r"^sample\.sources\.(\w)\.(.*)",
            lambda m: f"sample.sources.NAME.{m[2]}@{kinds[m[1]]}",
            key.replace("reward.0.", "reward[].").replace("track.0.", "track.").replace("also.far.", "also.NAME."),
        )
        for key in flatten(recipe.model_dump(mode="json"))
    }
    may = {named[key] for key in named.keys() - recipe.settings.keys()}
    marked = {key for _, key, _, free in rows() if free}
    assert may <= marked
    assert marked - may <= {
        "track",
        "track.options",
        "sample.vllm",
        "sample.sources.NAME.price@endpoint",
    }  # sections as a whole


def test_every_command_and_option_is_told() -> None:
    """Else write the page anew: make docs-cli."""
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `raftune ([\w-]+)`\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert sections.keys() == get_group(app).commands.keys()
    for name, told in sections.items():
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "400", "NO_COLOR": "1"}).output
        assert set(re.findall(r"--[a-z][\w-]*", told)) == set(re.findall(r"--[a-z][\w-]*", shown)), name


def figures(text: str) -> set[str]:
    """Numbers that claim something: with a point, or of two digits and more, outside of code and links."""
    plain = re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", " ", FENCES.sub("", text))
    return set(re.findall(r"(?<![\w.,])\d+[.,]\d+|(?<![\w.,])\d{2,}", plain))


MEASURED = {f for page in ("paper", "log", "benchmarks", "images") for f in figures((DOCS / f"{page}.md").read_text())}


# Of benchmarks.md only the race is quoted: the rest is written anew by whoever runs `make bench`
@pytest.mark.parametrize("page", sorted((DOCS / "questions").glob("*.md")), ids=lambda page: page.stem)
def test_figures_were_measured(page: Path) -> None:
    assert figures(page.read_text(encoding="utf-8")) - MEASURED == set()


def test_the_guide_for_trl_users_tells_every_argument() -> None:
    from raftune.trainer_config import MEANT, RAFTConfig

    told = set(re.findall(r"`(\w+)`", (DOCS / "guides" / "trl.md").read_text(encoding="utf-8")))
    assert set(RAFTConfig.__annotations__) | MEANT <= told


def test_the_site_has_every_page() -> None:
    site = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    for page in set(DOCS.rglob("*.md")) - set(DOCS.glob("paper/*/table.md")):
        assert page.relative_to(DOCS).as_posix() in site, page
