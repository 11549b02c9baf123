"""The weights that an engine or a server is to answer with: a model, or an adapter on one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..models import adapter_base, load_config, of_text
from ..resident import state_of
from ..types import Policy, digest

VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}  # say nothing of the model's shape


@dataclass(frozen=True)
class Weights:
    """``base``: an absolute folder or a hub id; ``adapter``: the folder of a PEFT adapter on it, of this ``rank``.

    ``base_version`` and ``adapter_version`` change with the files.
    """

    base: str
    adapter: str | None
    rank: int
    base_version: str
    adapter_version: str

    @classmethod
    def of(cls, policy: Policy) -> Weights:
        folder = of_text(policy)
        under = adapter_base(folder)
        base = of_text(folder if under is None else under)
        if adapter_base(base) is not None:
            raise UserError(
                f"sample: {folder} is an adapter on an adapter, which vLLM cannot serve; merge {base} first"
            )
        adapter = None if under is None else str(Path(folder).resolve())
        return cls(absolute(base), adapter, _rank(adapter), _version(base), _version(adapter) if adapter else "")

    def fit_into(self, other: str) -> bool:
        """Can a model that was loaded from ``other`` take this base's weights? The same place, or the same shapes."""
        if absolute(other) == self.base:
            return True
        try:
            return _shape(other) == _shape(self.base)
        except UserError:  # out of sight
            return False


def absolute(name: str) -> str:
    """A folder by its full path, so that another process finds it; a hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _rank(adapter: str | None) -> int:
    if adapter is None:
        return 0
    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    return max([config.get("r") or 0, *(config.get("rank_pattern") or {}).values()])


def _version(folder: str) -> str:
    return digest(state_of(folder)).hex()


def _shape(model: str) -> dict[str, Any]:
    return {key: value for key, value in load_config(model).to_dict().items() if key not in VOLATILE}
