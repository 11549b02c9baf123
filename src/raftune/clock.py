"""How long a call takes, and what it says of its progress on the way. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from . import memory, progress


@dataclass
class Bar:
    """What a part said of itself: when it began, and at which times so many units were done."""

    name: str
    begun: float
    ticks: list[tuple[float, int]] = field(default_factory=list)

    @property
    def gaps(self) -> list[float]:
        return [after[0] - before[0] for before, after in pairwise(self.ticks)]


@dataclass
class Watch:
    """A call: ``seconds``, its ``bars``, and the bytes the process held at most."""

    seconds: float = 0.0
    begun: float = 0.0
    bars: list[Bar] = field(default_factory=list)
    most: int | None = None

    def bar(self, name: str) -> Bar | None:
        """The first bar of that name that moved."""
        return next((bar for bar in self.bars if bar.name == name and bar.ticks), None)

    @property
    def ended(self) -> float:
        return self.begun + self.seconds


@contextmanager
def watched() -> Iterator[Watch]:
    """Time the block and what it says of its progress."""
    watch = Watch(begun=time.perf_counter())

    def show(name: str, total: int) -> tuple[Callable[[int], None], Callable[[], None]]:
        bar = Bar(name, time.perf_counter())
        watch.bars.append(bar)
        return (lambda n: bar.ticks.append((time.perf_counter(), n))), (lambda: None)

    with memory.stage() as stage, progress.shown_by(show):
        yield watch
    watch.seconds = time.perf_counter() - watch.begun
    watch.most = stage.most
