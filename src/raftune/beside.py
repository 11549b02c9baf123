"""Work beside the caller's: one thread that does pieces one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Thread
from typing import Generic, TypeVar

from . import interrupt

T = TypeVar("T")
POLL = 0.1  # seconds between two looks whether a signal asked to stop

log = logging.getLogger("raftune")


class Worker(Generic[T]):
    """``work`` on what it is given, in a thread, in order, up to the first error: that piece and those after it stay
    undone, and who needs them does them himself, so the error shows where it would without a thread."""

    def __init__(self, work: Callable[[T], None]) -> None:
        self._work = work
        self._given: SimpleQueue[T | None] = SimpleQueue()
        self._over, self._stopped = Event(), Event()
        Thread(target=self._run, daemon=True).start()  # a second SIGINT does not wait for it

    def give(self, piece: T) -> None:
        self._given.put(piece)

    def wait(self) -> None:
        """Until all that was given is done. Raises Interrupted when a signal asks for it."""
        self._given.put(None)
        while not self._over.wait(POLL):
            interrupt.check()

    def stop(self) -> None:
        """Finish the piece at hand and begin no other."""
        self._stopped.set()
        self._given.put(None)
        self._over.wait()

    def _run(self) -> None:
        try:
            while (piece := self._given.get()) is not None and not self._stopped.is_set():
                self._work(piece)
        except Exception as error:
            log.warning("%s; tried again when sampling is done", error)
        finally:
            self._over.set()


@contextmanager
def worker(work: Callable[[T], None]) -> Iterator[Worker[T]]:
    """A worker that is stopped if this block ends with an error, and not even waited for if it is told to end now."""
    found = Worker(work)
    try:
        yield found
    except Exception:
        found.stop()
        raise
