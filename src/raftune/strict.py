"""What every section of a recipe is: frozen, without unknown keys, without infinities. No torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel, frozen=True):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
