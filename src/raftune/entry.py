"""What an experiment tracker is told of a round, and what it must be able to do. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .columns import Array


@dataclass(frozen=True)
class Sample:
    """A held-out prompt and what was drawn for it before any tuning and after the round: texts, or PIL pictures.
    ``reward``: of what was drawn after; None where it was not scored."""

    prompt: str
    before: Any
    after: Any
    reward: float | None

    @property
    def row(self) -> list[Any]:
        """In the order of :data:`COLUMNS`."""
        return [self.prompt, self.before, self.after, self.reward]


COLUMNS = ["prompt", "before", "after", "reward"]
SAMPLES = "heldout/samples"  # what the table is called


@dataclass(frozen=True)
class Entry:
    """A round. ``figures``: the numbers of its row in metrics.jsonl, by their names there; ``rewards``: of all
    candidates that have one, ``sample/rewards``, ``chosen/rewards``, ``heldout/rewards``; ``alarms``: a line each."""

    number: int
    figures: Mapping[str, float]
    rewards: Mapping[str, Array]
    samples: Sequence[Sample]
    alarms: Sequence[str]

    @property
    def pictures(self) -> bool:
        """Are the samples pictures?"""
        return bool(self.samples) and not isinstance(self.samples[0].after, str)


class Tracker(Protocol):
    """One run of raftune in a tracker: a single run there, however many sessions it takes. All may raise anything."""

    def start(self, known: str | None, told: int, settings: Mapping[str, Any]) -> tuple[str, int]:
        """Open the tracker's run.

        Args:
            known: what an earlier session's ``start`` said of the run, None the first time.
            told: the last round that an earlier session told, -1 if none.
            settings: the recipe, flat.

        Returns:
            By which the next session finds this run, and the last round that it has: the tracker's own word where it
            can tell, since a process may end between telling and noting; else ``told``.
        """
        ...

    def log(self, entry: Entry) -> None: ...

    def finish(self) -> None: ...
