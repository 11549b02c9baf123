"""Candidates that another process keeps writing: each round takes the next shards of a folder, by name."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import files, interrupt, pick, pool
from .build import Parts
from .errors import UserError
from .prompts import tidy, without
from .store import Run
from .types import Candidate, Policy, Prompt

log = logging.getLogger("raftune")

ENDS = ("DONE", "STOP")  # a file of this name: nothing more will come
SUFFIXES = {".jsonl", ".json", ".parquet"}
POLL = 0.2  # seconds between two looks
SETTLED = 2.0  # seconds without a change after which a file that does not parse is at fault


@dataclass
class Stream:
    """The folder that is watched, for one run. It draws a round's prompts and is its sampler.

    Which files a round took is in ``rounds/N/shards.json``, with their hashes, before anything else of the round.
    """

    parts: Parts
    run: Run
    folder: Path
    idle: float
    ended: str = ""
    """Why there will be no further round."""
    _read: dict[str, tuple[tuple[int, int], bool, float]] = field(default_factory=dict)
    """Of each file: size and time of writing when it was last read, whether it parsed, and when that was."""

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder; the one that candidates are written to is needed")

    def ready(self, number: int) -> bool:
        """Wait until the shards of a round are there, and note them. False: there is no such round (``ended``)."""
        if self._taken(number).exists():
            return True
        count, since, seen = self.parts.shards or 1, time.monotonic(), -1
        while True:
            interrupt.check()
            over = next((name for name in ENDS if (self.folder / name).exists()), None)  # before looking for files
            found, pending = self._readable(number, count)
            last = over is not None and not pending
            if len(found) >= count or (last and found):
                digests = {path.name: _digest(path) for path in found}
                files.write_json(self._taken(number), digests)
                return True
            if len(found) != seen:
                since, seen = time.monotonic(), len(found)
            if last:
                self.ended = f"{self.folder / str(over)} is there and every shard was used"
                return False
            if not pending and time.monotonic() - since > self.idle:
                left = f", {len(found)} of the {count} shards of a round are there" if found else ""
                self.ended = f"no new shard in {self.folder} for {self.idle:g} s{left}"
                return False
            time.sleep(POLL)

    def draw(self, number: int) -> list[Prompt]:
        """The prompts of a round's shards, by the recipe's rules for prompts."""
        config, length = self.parts.recipe.prompts, self.parts.modality.prompt_length(self.parts.model)
        found: dict[str, Prompt] = {}
        for path in self._shards(number):
            for row in pool.read_pool(str(path)):
                if row.prompt is None:
                    raise UserError(f"{row.where}: no column 'prompt'; a shard brings its prompts along")
                first = found.setdefault(row.prompt.id, row.prompt)
                if pool.content_key(first) != row.content:
                    raise UserError(
                        f"{row.where}: the prompt_id {first.id!r} is another prompt's in the same round; ids must "
                        f"differ, or be left out; mend the shards and delete {self._taken(number)}"
                    )
        kept, counts = tidy(found.values(), length, config.max_tokens)
        if config.disjoint:
            usable, kept = kept, without(kept, self.parts.prompts.heldout)
            counts["also_heldout"] = len(usable) - len(kept)
        dropped = ", ".join(f"{count} {rule}" for rule, count in counts.items() if count and rule != "rows")
        if dropped:
            log.info("round %d: prompts dropped: %s", number, dropped)
        if not kept:
            names = ", ".join(path.name for path in self._shards(number))
            raise UserError(
                f"{self.folder}: no usable prompt in {names} ({dropped}); mend it and delete {self._taken(number)}"
            )
        return kept

    def sample(self, policy: Policy, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        """All that the shards of the round under way have for these prompts."""
        shards = self._shards(self.run.last + 1)
        answers = pick.pool([str(path) for path in shards], self.folder.name, self.folder.name)
        return answers.sample(policy, prompts, None, seed)

    def _taken(self, number: int) -> Path:
        return self.run.round(number).folder / "shards.json"

    def _shards(self, number: int) -> list[Path]:
        """The files that a round took, as they were then."""
        found = []
        for name, digest in files.read_json(self._taken(number)).items():
            path = self.folder / name
            if not path.is_file() or _digest(path) != digest:
                raise UserError(
                    f"{path}: round {number} took it, and it is gone or changed; put it back, or delete "
                    f"{self._taken(number).parent} to begin the round anew"
                )
            found.append(path)
        return found

    def _readable(self, number: int, count: int) -> tuple[list[Path], bool]:
        """The next files that no round took, in the order of their names, up to the first that is not whole yet;
        and whether there is such a one."""
        used = {name for earlier in range(1, number) for name in files.read_json(self._taken(earlier))}
        found: list[Path] = []
        for path in sorted(path for path in self._files() if path.name not in used):
            if len(found) == count:
                break
            if not self._whole(path):
                return found, True
            found.append(path)
        return found, False

    def _files(self) -> Iterator[Path]:
        for path in self.folder.iterdir():
            if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file():
                yield path

    def _whole(self, path: Path) -> bool:
        """Does it parse? A file that does not and no longer changes is at fault."""
        try:
            state = path.stat().st_size, path.stat().st_mtime_ns
        except FileNotFoundError:  # its writer thought better of it
            return False
        before, parsed, since = self._read.get(path.name, (None, False, 0.0))
        if before == state and parsed:
            return True
        try:
            pool.read_pool(str(path))
        except UserError:
            if before != state:
                self._read[path.name] = (state, False, time.monotonic())
            elif time.monotonic() - since > SETTLED:
                raise
            return False
        self._read[path.name] = (state, True, time.monotonic())
        return True


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
