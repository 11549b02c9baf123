"""Weights & Biases: a run that later sessions find by its id."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import WandBTracker

from ..entry import COLUMNS, SAMPLES, Entry
from .process import prepare

wandb: Any = importlib.import_module("wandb")  # the user's own, which type checkers need not find


class WandB:
    """``options``: of wandb.init."""

    def __init__(self, project: str, name: str, folder: Path, options: Mapping[str, Any]) -> None:
        self._project, self._name, self._folder, self._options = project, name, folder, options

    def start(self, known: str | None, told: int, settings: Mapping[str, Any]) -> tuple[str, int]:
        prepare()
        own: dict[str, Any] = {"id": known or secrets.token_hex(4), "name": self._name, "resume": "allow"}
        own |= {"dir": str(self._folder)} | ({} if known else {"config": dict(settings)})
        self._tracker = WandBTracker(self._project, **{**own, **self._options})
        self._tracker.start()
        run = self._tracker.tracker
        # The server counts on from the last step that it has; offline nobody knows
        return run.id, told if run.offline or run.disabled else run.step - 1

    def log(self, entry: Entry) -> None:
        """In one row, so that it is there or not."""
        row: dict[str, Any] = {name: wandb.Histogram(values.tolist()) for name, values in entry.rewards.items()}
        if entry.samples:
            row[SAMPLES] = wandb.Table(columns=COLUMNS, data=[[*map(_shown, one.row)] for one in entry.samples])
        if entry.alarms:
            row["alarms"] = "\n".join(entry.alarms)
        self._tracker.log({**entry.figures, **row}, step=entry.number, commit=True)

    def finish(self) -> None:
        self._tracker.finish()


def _shown(value: Any) -> Any:
    return wandb.Image(value) if hasattr(value, "convert") else value
