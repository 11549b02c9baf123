"""Where what a recipe names lies."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..imports import import_object


def beside_of(path: str, folder: Path) -> Path:
    return folder / path if (folder / path).exists() else Path(path)


def model(name: str, beside: Path = Path()) -> str:
    """A model folder is looked for beside the recipe, then here; anything else is a hub id or an asset."""
    from ..models import locate

    folder = beside_of(name, beside)
    return locate(folder if folder.is_dir() else name)


def custom(key: str, spec: str, beside: Path, options: dict[str, Any]) -> Any:
    """Somebody's own part: called with those options of the recipe that it names."""
    part: Callable[..., Any] = import_object(spec, beside)
    if not callable(part):
        raise UserError(f"{key}: {spec} is a {type(part).__name__}, not a class")
    parameters = inspect.signature(part).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    given = {name: value for name, value in options.items() if takes_all or name in {p.name for p in parameters}}
    try:
        return part(**given)
    except TypeError as error:
        raise UserError(f"{key}: {spec}({', '.join(given)}) raised TypeError: {error}") from error
