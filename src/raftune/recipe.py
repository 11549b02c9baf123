"""A recipe from its file: YAML, ``--set`` changes, and what is wrong with it in one line. No torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from .config import RECIPES, Recipe
from .errors import UserError
from .sources import USES

Config = TypeVar("Config", bound=BaseModel)


def load(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``--set KEY=VALUE`` changes. UserError names the file, the key and the mend."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, beginning with model, prompts and reward")
    for change in changes:
        _apply(raw, change)
    return parse(raw, str(path))


def _apply(raw: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise UserError(f"--set {change}: write KEY=VALUE, like --set sample.k=16")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {change}: {value!r} is not a value") from None
    if isinstance(parsed, str):
        with_point = _number(parsed)  # YAML reads 1e-5 as text
        parsed = parsed if with_point is None else with_point
    *path, last = key.split(".")
    inner: Any = raw
    for name in path:
        if isinstance(inner, list) and name.isdigit() and int(name) < len(inner):
            inner = inner[int(name)]
            continue
        if not isinstance(inner, dict):
            raise UserError(f"--set {change}: {name!r} is below something that has no keys")
        if isinstance(inner.get(name), str) and name == "prompts":
            inner[name] = {"path": inner[name]}
        inner = inner.setdefault(name, {})
    if not isinstance(inner, dict):
        raise UserError(f"--set {change}: {key!r} is below something that has no keys")
    inner[last] = parsed


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def parse(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A mapping → the recipe, of the modality it names (text, if none)."""
    modality = raw.get("modality", "text")
    if not isinstance(modality, str) or modality not in RECIPES:
        raise UserError(f"{where}: modality: {modality!r} is unknown; use {' or '.join(RECIPES)}")
    try:
        return RECIPES[modality].model_validate(_numbers(raw))
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(_explain(error, RECIPES[modality]))}") from None


def validated(kind: type[Config], raw: Mapping[str, Any], where: str) -> Config:
    """One section of a recipe by itself."""
    try:
        return kind.model_validate(_numbers(raw))
    except ValidationError as error:
        raise UserError("; ".join(f"{where}.{fault}" for fault in _explain(error, kind))) from None


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads ``1e-5`` as text (it wants ``1.0e-5``): take what is plainly a number as one."""
    if isinstance(value, Mapping):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, str) and "e" in value.lower() and (number := _number(value)) is not None:
        return number
    return value


def _explain(error: ValidationError, recipe: type[BaseModel]) -> Iterator[str]:
    for fault in error.errors():
        if fault["type"] == "default_factory_not_called":  # only because of another fault
            continue
        path = [str(part) for part in fault["loc"] if not _is_branch(str(part))]
        known = _keys_at(path[:-1], recipe)
        path = _without_tag(path)
        key = ".".join(path)
        if fault["type"] in {"union_tag_invalid", "union_tag_not_found"}:
            tag = fault.get("ctx", {}).get("tag")
            tag = "is missing" if tag is None else f"{tag!r} is unknown"
            yield f"{key}.use: {tag}; use {', '.join(USES)}"
        elif fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
            others = [name for name, other in RECIPES.items() if path[-1] in _keys_at(path[:-1], other)]
            if others:
                yield f"{key}: is a key of modality {others[0]}; set modality: {others[0]}, or leave it out"
            else:
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
                yield f"{key}: no such key; {hint}"
        elif fault["type"] == "missing":
            yield f"{key}: is missing"
        else:
            message = fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
            yield f"{key}: {message}, got {fault['input']!r}"


def _is_branch(part: str) -> bool:
    """Pydantic puts the branch of a union into the path; a user does not want to read it."""
    return "[" in part or part in {"int", "float", "str"}


def _without_tag(path: list[str]) -> list[str]:
    """Pydantic names the kind of a source behind its name: ``sample.sources.gpt.endpoint.retries``."""
    at = path.index("sources") + 2 if "sources" in path else len(path)
    return path[:at] + path[at + 1 :] if path[at : at + 1] and path[at] in USES else path


def _keys_at(path: Sequence[str], recipe: type[BaseModel]) -> list[str]:
    model: Any = recipe
    at = path.index("sources") + 2 if "sources" in path else len(path)
    if path[at : at + 1] and path[at] in USES:
        model, path = USES[path[at]], path[at + 1 :]
    for part in path:
        if part.isdigit():
            continue
        field = model.model_fields.get(part)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        nested = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)
