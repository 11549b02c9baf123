"""How much memory the process held at most: in all, and within a stage, nested ones too. No torch."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RESTART = Path("/proc/self/clear_refs")  # Linux: writing 5 lets the peak begin anew at what is held now
STATUS = Path("/proc/self/status")


@dataclass(eq=False)  # each is itself, whatever it holds
class Stage:
    """``most``: bytes (resident set), once the stage is over; None where the system cannot count anew."""

    most: int | None = 0


_process = Stage()
_open = [_process]


def peak() -> int:
    """Bytes (resident set): the most since the process began."""
    _note()
    return max(_process.most or 0, _usage())


@contextmanager
def stage() -> Iterator[Stage]:
    """Within this block the peak is counted anew; the stages around it keep theirs."""
    _note()
    here = Stage()
    try:
        RESTART.write_text("5")
    except OSError:
        here.most = None
    _open.append(here)
    try:
        yield here
    finally:
        _note()
        _open.remove(here)


def _note() -> None:
    """What was reached since the last count began belongs to every stage that is open."""
    reached = _since_restart()
    for one in _open:
        one.most = None if reached is None or one.most is None else max(one.most, reached)


def _since_restart() -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None


def _usage() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
