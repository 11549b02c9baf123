"""How much memory the process held at most: in all, and within one stage. No torch."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

RESTART = Path("/proc/self/clear_refs")  # Linux: writing 5 lets the peak begin anew at what is held now
STATUS = Path("/proc/self/status")

_before_restarts = 0


def peak() -> int:
    """Bytes (resident set): the most since the process began."""
    return max(_before_restarts, stage_peak() or 0, _usage())


def restart() -> bool:
    """Begin a stage; False where the system cannot count anew."""
    global _before_restarts
    _before_restarts = peak()
    try:
        RESTART.write_text("5")
    except OSError:
        return False
    return stage_peak() is not None


def stage_peak() -> int | None:
    """Bytes: the most since :func:`restart`; None where the system does not tell."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None


def _usage() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
