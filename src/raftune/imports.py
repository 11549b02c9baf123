"""Somebody's own code by name: ``module:name`` or ``path.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import UserError
from .types import digest


def import_object(spec: str, beside: Path | None = None) -> Any:
    """The object that ``spec`` names. A relative path is looked for ``beside`` the recipe, then here."""
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(f"{spec!r}: give module:name or path.py:name")
    file = _file(spec, place, beside) if place.endswith(".py") else None
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's module lies where the command was run
    try:
        module = importlib.import_module(place) if file is None else _load(file)
    except Exception as error:  # their code may raise anything
        raise UserError(f"{spec}: importing {place} raised {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise UserError(f"{spec}: {place} has no {name!r}")
    return getattr(module, name)


def _file(spec: str, place: str, beside: Path | None) -> Path:
    tried = [folder / place for folder in (beside, Path()) if folder is not None]
    for path in tried:
        if path.is_file():
            return path
    raise UserError(f"{spec}: no file {tried[0]}")


def _load(file: Path) -> ModuleType:
    # Its own name for each file: two folders may both have a rewards.py
    name = f"{file.stem}_{digest('module', str(file.resolve())).hex()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    spec.loader.exec_module(module)
    return module
