"""TensorBoard: event files in the run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate.tracking import TensorBoardTracker

from ..entry import COLUMNS, SAMPLES, Entry, Sample
from .process import prepare

FOLDER = "tensorboard"


class TensorBoard:
    """``options``: of torch's SummaryWriter."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._folder, self._options = folder, options

    def start(self, known: str | None, told: int, settings: Mapping[str, Any]) -> tuple[str, int]:
        prepare()
        # Readers hide what an earlier session wrote from this step on: it was killed before it could note it
        self._tracker = TensorBoardTracker(FOLDER, self._folder, **{"purge_step": told + 1, **self._options})
        self._tracker.start()
        if told < 0:
            recipe = yaml.safe_dump(dict(settings), sort_keys=False)
            self._tracker.tracker.add_text("recipe", f"```\n{recipe}```", 0)
        return FOLDER, told

    def log(self, entry: Entry) -> None:
        writer, number = self._tracker.tracker, entry.number
        for name, values in entry.rewards.items():
            writer.add_histogram(name, values, number, bins="rice")
        if entry.pictures:
            pictures = {f"{SAMPLES}/{at}": picture(one.after) for at, one in enumerate(entry.samples)}
            self._tracker.log_images(pictures, number, dataformats="NHWC")
        elif entry.samples:
            writer.add_text(SAMPLES, markdown(entry.samples), number)
        if entry.alarms:
            writer.add_text("alarms", "\n\n".join(map(escape, entry.alarms)), number)
        self._tracker.log(dict(entry.figures), number)  # the last: it writes all to disk

    def finish(self) -> None:
        self._tracker.finish()


def picture(image: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A batch of one PIL picture, [1, height, width, 3]."""
    return np.asarray(image.convert("RGB"), np.uint8)[None]


def markdown(samples: Sequence[Sample]) -> str:
    """A table; what a model wrote is text, whatever it contains."""
    rows = [[_cell(value) for value in one.row] for one in samples]
    return "\n".join(f"| {' | '.join(row)} |" for row in [COLUMNS, ["---"] * len(COLUMNS), *rows])


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else escape(str(value))
    return "<br>".join(text.replace("|", "&#124;").splitlines())
