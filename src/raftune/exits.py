"""How a command ends: exit codes, one line for what the user can mend, log lines on stderr."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from . import interrupt
from .errors import Interrupted, UserError

DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def exits(command: Callable[..., None]) -> Callable[..., None]:
    """Exit codes: 2 the user's input, 3 stopped by a signal and resumable, 1 anything else (with its traceback)."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        _log_to_stderr()
        try:
            with interrupt.handled():
                command(*args, **kwargs)
        except UserError as error:
            _fail(str(error), 2)
        except Interrupted as error:
            _fail(f"stopped by {error}; the same command resumes", 3)
        except OSError as error:
            if error.errno in DENIED and error.filename:
                _fail(f"{error.filename}: {error.strerror}; name another place, or give yourself access to it", 2)
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            where = f" on {error.filename}" if error.filename else ""
            _fail(f"no space left{where}; free some and run the same command again, nothing is lost", 2)

    return wrapped


def _fail(line: str, code: int) -> None:
    print(f"raftune: {' '.join(line.split())}", file=sys.stderr)
    raise typer.Exit(code)


def _log_to_stderr() -> None:
    class Stderr(logging.StreamHandler[Any]):
        """Whatever stderr is when it writes: a live table redirects it, so that lines land above it."""

        def emit(self, record: logging.LogRecord) -> None:
            self.stream = sys.stderr
            super().emit(record)

    logging.basicConfig(format="%(name)s: %(message)s", handlers=[Stderr()])
    logging.getLogger("raftune").setLevel(logging.INFO)
