"""What a user may write: a recipe, strict and frozen. No torch.

Paths in a recipe are looked for beside the recipe, then in the working directory; ``out`` is relative to the latter.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from .errors import UserError


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PromptsConfig(Strict):
    """Where prompts come from. ``path``: .jsonl, .parquet or a Hub dataset."""

    path: str
    column: str = "prompt"
    split: str = "train"
    name: str | None = None
    heldout: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | str = 0.1
    max_tokens: int = Field(default=1024, ge=1)


class RewardConfig(Strict):
    """One part of the reward. ``use``: ``module:function``, ``path.py:function`` or one of ours (docs/rewards.md).

    ``label``: for ``classifier`` the class that is wanted; for ``image-classifier`` and ``correct`` the column of the
    prompts that names it (``label`` by default).
    """

    use: str
    name: str | None = None
    weight: float = 1.0
    normalise: Literal["none", "zscore"] = "none"
    label: str | None = None


class SampleConfig(Strict):
    """``prompts_per_round``: b; ``k``: candidates per prompt (K); ``temperature``: λ."""

    prompts_per_round: int = Field(default=32, ge=1)
    k: int = Field(default=8, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_new_tokens: int = Field(default=64, ge=1)
    stop: tuple[str, ...] = ()
    shard: int = Field(default=32, ge=1)
    batch_rows: int | None = Field(default=None, ge=1)
    backend: str = "text"


class SelectConfig(Strict):
    rule: str = "best"
    skip_tied: bool = False


class LoraConfig(Strict):
    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None


class TuneConfig(Strict):
    learning_rate: float = Field(default=2e-5, gt=0)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)
    batch_tokens: int = Field(default=4096, ge=1)
    schedule: Literal["linear", "constant"] = "linear"
    max_grad_norm: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Literal["reset", "carry"] = "reset"
    gradient_checkpointing: bool = False
    save_steps: int = Field(default=100, ge=1)
    lora: LoraConfig | None = None
    backend: str = "text"


class EvaluateConfig(Strict):
    """``k`` outputs per held-out prompt, drawn as in training; ``patience``: rounds without a better reward there."""

    k: int = Field(default=1, ge=1)
    every: int = Field(default=1, ge=1)
    patience: int | None = Field(default=None, ge=1)


def _listed(value: Any) -> Any:
    """``vader``, ``{use: vader}`` and ``[vader]`` all mean one reward."""
    items = value if isinstance(value, list | tuple) else [value]
    return tuple({"use": item} if isinstance(item, str) else item for item in items)


class Recipe(Strict):
    """A whole run. ``out`` and ``keep`` may differ when a run is resumed, ``rounds`` and ``patience`` too."""

    model: str
    prompts: PromptsConfig
    reward: Annotated[tuple[RewardConfig, ...], BeforeValidator(_listed), Field(min_length=1)]
    sample: SampleConfig = SampleConfig()
    select: SelectConfig = SelectConfig()
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    rounds: int = Field(default=5, ge=1)
    seed: int = 0
    out: str | None = None
    keep: Literal["best", "all"] = "best"

    @field_validator("prompts", mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @property
    def settings(self) -> dict[str, Any]:
        """What must not change between the sessions of a run, flat."""
        free = {"out", "keep", "rounds", "evaluate.patience"}
        return {key: value for key, value in flatten(self.model_dump(mode="json")).items() if key not in free}


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` → ``{"a.b": 1}``; lists are numbered."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{name}.")
        elif isinstance(inner, list) and inner and isinstance(inner[0], Mapping):
            flat |= flatten({str(place): item for place, item in enumerate(inner)}, f"{name}.")
        else:
            flat[name] = inner
    return flat


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
    """A mapping → the recipe."""
    try:
        return Recipe.model_validate(_numbers(raw))
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(_explain(error))}") from None


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads ``1e-5`` as text (it wants ``1.0e-5``): take what is plainly a number as one."""
    if isinstance(value, Mapping):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, str) and "e" in value.lower() and (number := _number(value)) is not None:
        return number
    return value


def _explain(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        path = [str(part) for part in fault["loc"] if not _is_branch(str(part))]
        key = ".".join(path)
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path[-1], _keys_at(path[:-1]), n=1, cutoff=0.5)
            known = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(_keys_at(path[:-1]))}"
            yield f"{key}: no such key; {known}"
        elif fault["type"] == "missing":
            yield f"{key}: is missing"
        else:
            message = fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
            yield f"{key}: {message}, got {fault['input']!r}"


def _is_branch(part: str) -> bool:
    """Pydantic puts the branch of a union into the path; a user does not want to read it."""
    return "[" in part or part in {"int", "float", "str"}


def _keys_at(path: Sequence[str]) -> list[str]:
    model: Any = Recipe
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
