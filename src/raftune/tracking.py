"""Tracking: a run told to experiment trackers, round by round, each round once, however many sessions it takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from . import files
from .entry import Entry, Sample, Tracker
from .errors import UserError
from .report.record import Record
from .types import Prompt, Scored

log = logging.getLogger("raftune")

NAME = "tracking.json"
NONE: Mapping[str, Any] = MappingProxyType({})


class Tracking:
    """The trackers of a run, by name; within a ``with`` they listen. What each was told is noted in ``tracking.json``,
    so that the next session tells what is missing and nothing twice. One that fails is left out until then."""

    def __init__(
        self,
        trackers: Mapping[str, Tracker] = NONE,
        folder: Path = Path(),
        settings: Mapping[str, Any] = NONE,
        samples: Mapping[str, int] = NONE,
    ) -> None:
        """``folder``: the run's; ``settings``: its recipe, flat; ``samples``: how many held-out prompts each tracker
        is shown."""
        self._trackers, self._folder, self._settings, self._samples = trackers, folder, settings, samples
        self._told: dict[str, int] = {}  # the last round, of those that listen

    def __enter__(self) -> Tracking:
        """UserError where a package is not there or an option is none: nothing was done yet that could be lost."""
        for name, tracker in self._trackers.items():
            noted = self._notes().get(name, {})
            try:
                run, told = tracker.start(noted.get("run"), noted.get("told", -1), self._settings)
                self._note(name, run, told)
            except (ImportError, TypeError) as error:
                self.__exit__()
                raise UserError(f"track: {name}: {error}; install what it needs, or mend its options") from error
            except Exception as error:
                self._leave_out(name, error)
        return self

    def __exit__(self, *exc: object) -> None:
        for name in [*self._told]:
            try:
                self._trackers[name].finish()
            except Exception as error:
                self._leave_out(name, error)
        self._told.clear()

    def tell(self, number: int) -> None:
        """Round ``number`` has all its figures: the trackers that have not heard of it do."""
        for name, told in [*self._told.items()]:
            if number > told:
                try:
                    self._trackers[name].log(entry(self._folder, number, self._samples.get(name, 0)))
                    self._note(name, self._notes()[name]["run"], number)
                except Exception as error:
                    self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        """Hours of work do not end because a tracker is out of reach."""
        self._told.pop(name, None)
        log.warning(
            "track: %s: %s: %s; the run goes on without it, and its next session tells what is missing",
            *(name, type(error).__name__, " ".join(str(error).split()).rstrip(".")),
        )

    def _notes(self) -> dict[str, dict[str, Any]]:
        path = self._folder / NAME
        return files.read_json(path) if path.exists() else {}

    def _note(self, name: str, run: str, told: int) -> None:
        self._told[name] = told
        files.write_json(self._folder / NAME, self._notes() | {name: {"run": run, "told": told}})


def entry(folder: Path, number: int, samples: int) -> Entry:
    """What the run directory holds of a round, with so many held-out prompts."""
    record = Record.of(folder)
    row, rewards = record.row(number), {}
    for name, table in (("sample", "scored"), ("chosen", "chosen"), ("heldout", "heldout")):
        if (found := record.table(number, table)) is not None:
            values = found.columns.reward
            rewards[f"{name}/rewards"] = values[~np.isnan(values)]
    return Entry(
        number,
        {name: value for name, value in row.items() if isinstance(value, int | float)},
        {name: values for name, values in rewards.items() if len(values)},
        [_sample(record.modality.shown, *pair) for pairs in record.before_and_after(number, samples) for pair in pairs],
        row.get("alarms", ()),
    )


def _sample(shown: Callable[[Any], Any], before: Scored, after: Scored) -> Sample:
    told = _text(after.candidate.prompt)
    return Sample(told, shown(before.candidate.output), shown(after.candidate.output), after.reward)


def _text(prompt: Prompt) -> str:
    """Of a dialogue the last message."""
    return prompt.content if isinstance(prompt.content, str) else prompt.content[-1]["content"]
