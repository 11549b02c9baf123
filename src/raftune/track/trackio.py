"""trackio: a run that later sessions find by its name."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import trackio
from accelerate.tracking import TrackioTracker
from trackio import context_vars, utils
from trackio.sqlite_storage import SQLiteStorage

from ..entry import COLUMNS, SAMPLES, Entry
from .process import prepare


class Trackio:
    """``options``: of trackio.init."""

    def __init__(self, project: str, name: str, options: Mapping[str, Any]) -> None:
        self._project, self._name, self._options = project, name, options

    def start(self, known: str | None, told: int, settings: Mapping[str, Any]) -> tuple[str, int]:
        prepare()
        own: dict[str, Any] = {"name": known or self._free(), "resume": "allow", "config": dict(settings)}
        self._tracker = TrackioTracker(self._project, **{**own, **self._options})
        self._tracker.start()
        run = self._tracker.tracker
        if context_vars.current_server.get() is not None or utils.get_storage_mode() != "sqlite":
            return run.name, told  # elsewhere, or not to be read yet
        last = SQLiteStorage.get_max_step_for_run(self._project, run.name, run_id=run.id)
        return run.name, -1 if last is None else last

    def _free(self) -> str:
        """The name, or, where a run of this project has it here, another one: trackio would put both together."""
        try:
            taken = {one.name for one in trackio.Api().runs(self._project)}
        except ValueError:  # the project is new
            taken = set()
        return f"{self._name}-{secrets.token_hex(2)}" if self._name in taken else self._name

    def log(self, entry: Entry) -> None:
        """In one row, so that it is there or not."""
        row: dict[str, Any] = {name: trackio.Histogram(values) for name, values in entry.rewards.items()}
        if entry.samples:
            table = [[*map(_shown, one.row)] for one in entry.samples]
            row[SAMPLES] = trackio.Table(columns=COLUMNS, data=table)
        if entry.alarms:
            row["alarms"] = trackio.Markdown("\n\n".join(entry.alarms))
        self._tracker.log({**entry.figures, **row}, step=entry.number)

    def finish(self) -> None:
        self._tracker.finish()


def _shown(value: Any) -> Any:
    return trackio.Image(value) if hasattr(value, "convert") else value
