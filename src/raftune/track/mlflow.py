"""MLflow: a run that later sessions find by its id. It has no histograms."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from accelerate.tracking import MLflowTracker

from ..entry import COLUMNS, SAMPLES, Entry
from .process import prepare

mlflow: Any = importlib.import_module("mlflow")  # the user's own, which type checkers need not find
OUT = re.compile(r"[^\w\-. :/]")  # of what MLflow lets metrics be called
ROUND = "round"  # the metric that tells the last round


class MLflow:
    """``options``: of Accelerate's MLflowTracker: tags, description, nested_run."""

    def __init__(self, project: str, name: str, options: Mapping[str, Any]) -> None:
        self._project, self._name, self._options = project, name, options

    def start(self, known: str | None, told: int, settings: Mapping[str, Any]) -> tuple[str, int]:
        prepare()
        self._tracker = MLflowTracker(self._project, run_id=known, run_name=self._name, **self._options)
        self._tracker.start()
        if known is None:
            self._tracker.store_init_configuration(dict(settings))
        run = self._tracker.tracker.info.run_id
        return run, int(mlflow.get_run(run).data.metrics.get(ROUND, -1))

    def log(self, entry: Entry) -> None:
        if entry.samples:
            columns = {name: [_shown(one.row[at]) for one in entry.samples] for at, name in enumerate(COLUMNS)}
            mlflow.log_table(columns, f"{SAMPLES}-{entry.number:04d}.json")
        if entry.alarms:
            mlflow.set_tag(f"alarms {entry.number}", "\n".join(entry.alarms))
        self._tracker.log({OUT.sub("_", name): value for name, value in entry.figures.items()}, step=entry.number)

    def finish(self) -> None:
        self._tracker.finish()


def _shown(value: Any) -> Any:
    return mlflow.Image(value) if hasattr(value, "convert") else value
