"""What a run began with, as its cards tell it: its name on the Hub, its licence. Nothing is guessed: a Hub id is one
that this machine loaded from the Hub, or that the user gave; a licence is what a card or a package says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ..assets import ASSETS, SCHEME
from ..files import read_json
from ..report.record import Record

LICENCE = ("license", "license_name", "license_link")
CARD = "README.md"
LOCAL = re.compile(r"/|~|[A-Za-z]:\\|\.\.?/")  # how paths begin


@dataclass(frozen=True)
class Base:
    """``name``: what people call it, never a path; ``hub_id``: None where it is not known to be on the Hub;
    ``licence``: the entries of its card's header, empty where it is unknown."""

    name: str
    hub_id: str | None = None
    licence: Mapping[str, Any] = field(default_factory=dict)


def base_of(record: Record, policy: str | Path | None = None, called: str | None = None) -> Base:
    """The base of a policy: what its adapter stands beside, else what the run began with. ``called``: its Hub id."""
    name = (adapter_base(Path(policy)) if policy is not None else None) or started_from(record)
    while (below := adapter_base(Path(name))) is not None:
        name = below
    known = called or hub_id(name)
    licence = licence_of(name) or (licence_of(known) if known else {})
    return Base(known or (Path(name).name if Path(name).exists() else shared(name)), known, licence)


def started_from(record: Record) -> str:
    """The initial policy as the run's fingerprint has it, else its recipe."""
    return str(fingerprint(record).get("model") or record.recipe.get("model") or "unknown")


def fingerprint(record: Record) -> dict[str, Any]:
    """What must not change between the sessions of the run; empty where it is not there."""
    path = record.folder / "fingerprint"
    return read_json(path) if path.exists() else {}


def adapter_base(folder: Path) -> str | None:
    """What a LoRA of texts or pictures was made for; None if the folder holds none."""
    config = folder / "adapter_config.json"
    if config.exists():
        return read_json(config).get("base_model_name_or_path")
    weights = folder / "pytorch_lora_weights.safetensors"
    if not weights.exists():
        return None
    from safetensors import safe_open

    from ..pipelines import METADATA

    with safe_open(weights, "pt") as file:
        said = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    return next((value for key, value in said.items() if key.endswith("base_model_name_or_path")), None)


def hub_id(name: str) -> str | None:
    """``name`` if it was loaded from the Hub on this machine; any other may be a folder of another place."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(name).exists():
        return None
    try:
        found = [try_to_load_from_cache(name, config) for config in ("config.json", "model_index.json")]
    except HFValidationError:
        return None
    return name if any(isinstance(path, str) for path in found) else None


def licence_of(name: str) -> dict[str, Any]:
    """As its card says: of a folder, of a model in the Hub's cache, of a package; empty where there is none."""
    if name.startswith(SCHEME):
        asset = ASSETS.get(name.removeprefix(SCHEME))
        return {"license": asset.licence.lower()} if asset else {}
    card = _card(name)
    if card is None:
        return {}
    from huggingface_hub import ModelCard

    try:
        said = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # YAML that is none, in a file of somebody else's
        return {}
    return {key: said[key] for key in LICENCE if said.get(key)} if said.get("license") else {}


def _card(name: str) -> Path | None:
    if Path(name).is_dir():
        return Path(name) / CARD if (Path(name) / CARD).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, CARD)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def shared(value: Any) -> Any:
    """A recipe's value without what is of this machine alone: of paths the last name, of addresses no password."""
    if isinstance(value, Mapping):
        return {key: shared(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shared(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        parts = urlsplit(value)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    kind, colon, rest = value.partition(":")
    if colon and LOCAL.match(rest):  # classifier:/home/me/model
        return f"{kind}:{Path(rest).name}"
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if LOCAL.match(value) else value
