"""Run: the run directory and everything that ever happened in it. Disk is the seam between the stages.

What a stage made is on disk before the next begins, so a killed process loses at most the shard at hand::

    runs/NAME/fingerprint  metrics.jsonl  best → rounds/0005/policy
              rounds/0005/{prompts,scored,chosen}.parquet  candidates/*.parquet  policy/  metrics.json  DONE
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from . import files, interrupt, memory, table
from .columns import columns_of
from .errors import UserError
from .ledger import ScoredTable
from .protocols import Codec
from .round_folder import RoundFolder
from .types import Policy, Round, Scored

__all__ = ["RoundFolder", "Run", "best_of"]


class Run:
    """A run directory, held by one process at a time. Open it again to resume."""

    def __init__(
        self, folder: Path | str, policy: Policy, codec: Codec | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        """``policy``: the initial checkpoint. ``settings``: what must not change between sessions, as a flat mapping.

        Raises UserError if the directory belongs to a run with other settings (naming them), or is in use.
        """
        self.root = Path(folder)
        self.initial = policy
        self.codec = codec or table.TextCodec()
        self._enter()
        try:
            self._identify({"model": str(policy), **(settings or {})})
        except BaseException:
            self.close()
            raise
        files.sweep(self.root)

    def _enter(self) -> None:
        """Take the directory, if it is a run's or nobody's."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{self.root}: is not a directory; name another with --out") from None
        except (FileNotFoundError, PermissionError) as error:
            raise UserError(f"{self.root}: cannot be written to ({error.strerror}); name another with --out") from None
        foreign = [entry.name for entry in self.root.iterdir() if not entry.name.startswith(".")]
        if foreign and not (self.root / "fingerprint").exists():
            raise UserError(f"{self.root}: holds {foreign[0]!r} and no run; name an empty or new directory")
        self._lock = FileLock(self.root / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.root}: another process is running here; wait for it or name another --out"
            ) from None

    def _identify(self, settings: Mapping[str, Any], adding: str | None = None) -> None:
        """The run is what it was, or new; keys that begin with ``adding`` may be new in an old run."""
        path = self.root / "fingerprint"
        settings = json.loads(json.dumps(dict(settings), default=str))
        before = files.read_json(path) if path.exists() else {}
        new = not any(key.startswith(adding) for key in before) if adding else not before
        if new:
            files.write_json(path, settings)
            return
        if adding is None:
            before = {key: value for key, value in before.items() if not key.startswith("loop.")}
        changed = [
            f"{key} ({before.get(key)!r} → {settings.get(key)!r})"
            for key in sorted(before.keys() | settings.keys())
            if before.get(key) != settings.get(key)
        ]
        if changed:
            raise UserError(f"{self.root}: holds a run of another recipe: {', '.join(changed)}; name another --out")

    def settle(self, **settings: object) -> None:
        """Fix what a loop was started with; UserError if an earlier session of this run had something else."""
        path = self.root / "fingerprint"
        known = files.read_json(path)
        before = {key: value for key, value in known.items() if not key.startswith("loop.")}
        self._identify(before | {f"loop.{key}": value for key, value in settings.items()}, adding="loop.")

    def close(self) -> None:
        """Let another process have the directory."""
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def round(self, number: int) -> RoundFolder:
        return RoundFolder(self.root / "rounds" / f"{number:04d}", self.codec)

    @property
    def last(self) -> int:
        """The last committed round; 0 before the first."""
        number = 0
        while self.round(number + 1).done:
            number += 1
        return number

    def remaining(self, rounds: int) -> Iterator[int]:
        """The numbers of the rounds still to do, one after the other."""
        for number in range(self.last + 1, rounds + 1):
            interrupt.check()
            yield number

    def policy_of(self, number: int) -> Policy:
        """The checkpoint that a round ended with; round 0 is the initial policy."""
        return self.round(number).folder / "policy" if number else self.initial

    @property
    def policy(self) -> Policy:
        """The latest checkpoint."""
        return self.policy_of(self.last)

    def lesson(self, number: int, buffer: int) -> ScoredTable:
        """What round ``number`` and the ``buffer`` rounds before it chose, the earliest first."""
        rounds = [self.round(earlier) for earlier in range(max(1, number - buffer), number + 1)]
        return ScoredTable([here.folder / "chosen.parquet" for here in rounds], self.codec)

    def commit(self, number: int, scored: Sequence[Scored], chosen: Sequence[Scored], policy: Policy) -> Round:
        """Everything of the round is on disk: write its figures and mark it done."""
        here, columns = self.round(number), columns_of(scored)
        figures: dict[str, Any] = {
            "sample/reward_mean": columns.mean_reward,
            "chosen/reward_mean": columns_of(chosen).mean_reward,
            "sample/candidates": len(scored),
            "sample/unscored": columns.unscored,
            "chosen/candidates": len(chosen),
            **here.figures,
        }
        # Work of all sessions, without the pauses between them; what was done elsewhere meanwhile took no time here
        stages = [figures.get(f"time/{stage}_s") for stage in ("sample", "score", "select", "tune")]
        figures["time/round_s"] = sum(seconds for seconds in stages if seconds is not None)
        self.log(number, figures)
        (here.folder / "DONE").touch()
        return Round(number, scored, chosen, str(policy), self.metrics(number))

    def log(self, number: int, figures: Mapping[str, Any]) -> None:
        """Add figures to a round. What is None was not measured and stays absent."""
        path = self.round(number).folder / "metrics.json"
        known = {key: value for key, value in figures.items() if value is not None}
        files.write_json(path, {"round": number, **self.metrics(number), **known, "memory/peak_bytes": memory.peak()})
        rows = [json.dumps(row) for row in self.history()]
        with files.replacing(self.root / "metrics.jsonl") as part:
            part.write_text("\n".join(rows) + "\n", encoding="utf-8")

    def metrics(self, number: int) -> dict[str, Any]:
        """What is known of a round so far."""
        path = self.round(number).folder / "metrics.json"
        return files.read_json(path) if path.exists() else {}

    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return [files.read_json(path) for path in sorted((self.root / "rounds").glob("*/metrics.json"))]

    def best(self, key: str = "heldout/reward_mean") -> int:
        """The round with the highest figure (the earliest of equals); the last round where none was measured."""
        found = best_of(self.history(), key)
        return self.last if found is None else found

    def prune(self, keep: set[int]) -> None:
        """Point ``best`` at the best round and remove the weights of the rounds not in ``keep``; never a candidate."""
        best = Path(self.policy_of(self.best()))
        target = Path(os.path.relpath(best, self.root)) if self.best() else best.resolve()
        if best.exists():  # a hub id is nowhere to point to
            link = self.root / ".best.part"
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)
            link.replace(self.root / "best")
        for number in range(1, self.last + 1):
            if number not in keep:
                shutil.rmtree(self.round(number).folder / "policy", ignore_errors=True)
                (self.round(number).folder / "optimizer.pt").unlink(missing_ok=True)


def best_of(rows: Sequence[Mapping[str, Any]], key: str = "heldout/reward_mean") -> int | None:
    """The round with the highest figure (the earliest of equals); None where none was measured."""
    known = [row for row in rows if key in row]
    return max(known, key=lambda row: (row[key], -row["round"]))["round"] if known else None
