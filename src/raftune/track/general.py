"""Any other tracker that speaks Accelerate's interface: Accelerate's own further ones, or somebody's class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..entry import COLUMNS, SAMPLES, Entry
from .process import prepare


class General:
    """Figures, and samples where its class has ``log_table`` (texts) or ``log_images``. Made as Accelerate makes it:
    with the project, the folder where it asks for one, and its options."""

    def __init__(self, make: type[Any], project: str, folder: Path, options: Mapping[str, Any]) -> None:
        self._make, self._options = make, options
        self._given = [project, *([str(folder)] if make.requires_logging_directory else [])]

    def start(self, known: str | None, told: int, settings: Mapping[str, Any]) -> tuple[str, int]:
        prepare()
        self._tracker = self._make(*self._given, **self._options)
        self._tracker.start()
        if known is None:
            self._tracker.store_init_configuration(dict(settings))
        return self._tracker.name, told

    def log(self, entry: Entry) -> None:
        if entry.pictures and hasattr(self._tracker, "log_images"):
            self._tracker.log_images({SAMPLES: [one.after for one in entry.samples]}, step=entry.number)
        elif entry.samples and hasattr(self._tracker, "log_table"):
            rows = [one.row for one in entry.samples]
            self._tracker.log_table(SAMPLES, columns=COLUMNS, data=rows, step=entry.number)
        self._tracker.log(dict(entry.figures), step=entry.number)

    def finish(self) -> None:
        self._tracker.finish()
