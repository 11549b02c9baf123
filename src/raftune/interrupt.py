"""SIGINT and SIGTERM finish the shard at hand, then stop the run where it can be resumed. A second SIGINT stops now."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Interrupted

_received: list[int] = []


def requested() -> bool:
    """Has a signal asked the run to stop?"""
    return bool(_received)


def check() -> None:
    """At a seam, when everything done so far is on disk: stop here if a signal asked for it."""
    if _received:
        raise Interrupted(signal.Signals(_received[0]).name)


@contextmanager
def handled() -> Iterator[None]:
    """Within this block SIGINT and SIGTERM are noted instead of killing the process."""

    def note(number: int, frame: FrameType | None) -> None:
        if _received and number == signal.SIGINT:
            raise KeyboardInterrupt
        _received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
