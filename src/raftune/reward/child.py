"""A check in a process of its own, so that no output hangs or fells the run. No torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

CHECKS = Path(__file__).with_name("checks.py")


class Child:
    """One of :mod:`.checks`, asked one question after the other; works in any thread.

    A process that is ended by its time limit or by want of memory is replaced with the next question. It does not
    outlive the limit, even where this process is killed. POSIX only.
    """

    def __init__(self, check: str, seconds: float) -> None:
        self.check = check
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def ask(self, *question: str) -> Any:
        """The answer, or None where there was none within ``seconds`` of CPU time."""
        process = self._process or self._start()
        assert process.stdin and process.stdout  # pipes
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):
            self.close()
            return None
        return json.loads(answer)

    def _start(self) -> subprocess.Popen[str]:
        self._process = process = subprocess.Popen(
            # -P: the modules beside checks.py are no libraries
            [sys.executable, "-P", "-W", "ignore", str(CHECKS), self.check, str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="ascii",
            start_new_session=True,  # Ctrl-C is for the run, which stops at a seam
        )
        assert process.stdout
        if process.stdout.readline() != "ready\n":
            self.close()
            raise RuntimeError(f"the process that checks {self.check} could not begin; what it said stands above")
        return process

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stdin):
            try:
                if pipe:
                    pipe.close()
            except BrokenPipeError:  # what was not sent is of no interest
                pass

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
