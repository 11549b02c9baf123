"""RoundFolder: one round on disk, each of its stages done once. Outputs stay there; what is passed on are ledgers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np

from . import files, interrupt, ledger, memory, progress, table
from .beside import Worker, worker
from .columns import Array, Columns, floats
from .ledger import Candidates, Ledger, ScoredTable, StoredPrompts
from .protocols import Codec
from .score import Rewards
from .types import Candidate, Policy, Prompt, Scored

Sample = Callable[[Sequence[Prompt]], Sequence[Candidate]]


class RoundFolder:
    """One round on disk. Every method does its work once; a second call reads what the first one wrote."""

    def __init__(self, folder: Path, codec: Codec) -> None:
        self.folder = folder
        self.codec = codec
        self._clock = Lock()

    @property
    def done(self) -> bool:
        return (self.folder / "DONE").exists()

    def prompts(self, draw: Callable[[], Sequence[Prompt]]) -> Sequence[Prompt]:
        path = self.folder / "prompts.parquet"
        if not path.exists():
            table.write_prompts(path, draw())
        return StoredPrompts(path)

    def candidates(
        self, prompts: Sequence[Prompt], shard: int, sample: Sample, rewards: Rewards | None = None
    ) -> Candidates:
        """Sample ``shard`` prompts at a time, one file each. Where ``rewards`` are worked out elsewhere, each shard is
        scored in a thread while the next one is sampled."""
        paths = [self.folder / "candidates" / f"{n:05d}.parquet" for n in range(-(-len(prompts) // shard))]
        asked = iter(prompts)
        with self._scoring(rewards) as scoring, progress.bar("sample", len(prompts)) as advance:
            for path in paths:
                some = list(islice(asked, shard))
                if not path.exists():
                    interrupt.check()
                    with self.timed("sample"):
                        table.write_candidates(path, sample(some), self.codec)
                if scoring:
                    scoring.give(path)
                advance(len(some))
            if scoring:
                with self.timed("score"):
                    scoring.wait()
        return Candidates(paths, self.codec)

    def _scoring(self, rewards: Rewards | None) -> AbstractContextManager[Worker[Path] | None]:
        """What scores shards beside sampling, if the rewards are worked out elsewhere."""
        if rewards is None or not rewards.elsewhere or (self.folder / "scored.parquet").exists():
            return nullcontext()

        def score(path: Path) -> None:
            if self._known(path, rewards) is None:
                start = time.perf_counter()
                self._score(path, rewards)
                self._spend("elsewhere", time.perf_counter() - start, None)

        return worker(score)

    def _score(self, shard: Path, rewards: Rewards) -> None:
        values = rewards.parts(table.read_candidates(shard, self.codec))
        found = {"version": rewards.version, "shard": shard.name, "parts": values}
        files.write_json(self._parts(shard), found, indent=None)

    def _known(self, shard: Path, rewards: Rewards) -> dict[str, Array] | None:
        """What the parts of the reward said of a shard; None where that is still to do."""
        path = self._parts(shard)
        found = files.read_json(path) if path.exists() else {}
        if (found.get("version"), found.get("shard")) != (rewards.version, shard.name):
            return None  # a reward that was mended since scores the whole round: its numbers do not compare
        parts = {name: floats(values) for name, values in found["parts"].items()}
        whole = all(len(part) == len(Candidates([shard], self.codec)) for part in parts.values())
        return parts if whole else None

    def _parts(self, shard: Path) -> Path:
        return self.folder / "scoring" / f"{shard.stem}.json"

    def scored(self, candidates: Candidates, rewards: Rewards) -> Ledger | ScoredTable:
        """Score what is not scored yet, a shard at a time; the weighted sum is taken over the whole round."""
        path = self.folder / "scored.parquet"
        if path.exists() and len(before := ScoredTable([path], self.codec)) == len(candidates):
            decided = (self.folder / "chosen.parquet").exists()  # else the table will be written once more
            return before if decided else Ledger(candidates, before.columns)
        parts: dict[str, list[Array]] = {member.reward.name: [floats([])] for member in rewards.members}
        with progress.bar("score", len(candidates)) as advance:
            for shard in candidates.paths:
                while (found := self._known(shard, rewards)) is None:
                    interrupt.check()
                    with self.timed("score"):
                        self._score(shard, rewards)
                for name, values in found.items():
                    parts[name].append(values)
                advance(len(next(iter(found.values()))))
        with self.timed("score"):
            whole = {name: np.concatenate(parts.pop(name)) for name in [*parts]}
            keys = candidates.keys
            return Ledger(candidates, Columns(keys, rewards.reward(keys.prompt, whole), whole))

    def chosen(self, scored: Ledger | ScoredTable, choose: Callable[[], Sequence[Scored]]) -> ScoredTable:
        """Choose, and write the table of what was scored and that of what was chosen."""
        path = self.folder / "chosen.parquet"
        if isinstance(scored, Ledger) and not path.exists():
            with self.timed("select"):
                self._decide(path, scored, choose)
        shutil.rmtree(self.folder / "scoring", ignore_errors=True)
        return ScoredTable([path], self.codec)

    def _decide(self, path: Path, scored: Ledger, choose: Callable[[], Sequence[Scored]]) -> None:
        try:
            chosen = choose()
        except Exception:
            ledger.write(self.folder / "scored.parquet", scored, None)  # to be looked at: nothing was decided
            raise
        ledger.write(self.folder / "scored.parquet", scored, scored.which(chosen))
        table.write_chosen(path, chosen, self.codec)
        scored.let_go(ScoredTable([self.folder / "scored.parquet"], self.codec))

    def policy(self, tune: Callable[[Path], Policy]) -> Policy:
        path = self.folder / "policy"
        if not path.exists():
            interrupt.check()
            with self.timed("tune"):
                tune(path)
        return path

    @property
    def figures(self) -> dict[str, float]:
        """What the learner and the clock say of this round."""
        path = self.folder / "policy" / files.FIGURES
        tuned = files.read_json(path) if path.exists() else {}
        figures = {f"tune/{name}": value for name, value in tuned.items()}
        for stage, (seconds, most) in self._spent().items():
            figures[f"time/{stage}_s"] = seconds
            if most is not None:
                figures[f"memory/{stage}_bytes"] = most
        return figures

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of this block to the round's clock, which outlives the process, and note its peak memory."""
        start = time.perf_counter()
        with memory.stage() as here:
            yield
        self._spend(stage, time.perf_counter() - start, here.most)

    def _spend(self, stage: str, seconds: float, most: int | None) -> None:
        with self._clock:  # a thread that scores has its own
            spent = self._spent()
            before, peak = spent.get(stage, (0.0, None))
            peaks = [one for one in (peak, most) if one is not None]
            spent[stage] = (before + seconds, max(peaks, default=None))
            files.write_json(self.folder / "times.json", spent)

    def _spent(self) -> dict[str, tuple[float, int | None]]:
        """Stage → seconds and bytes."""
        path = self.folder / "times.json"
        return files.read_json(path) if path.exists() else {}
