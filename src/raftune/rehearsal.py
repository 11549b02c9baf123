"""A recipe's real parts at small size, timed: seconds a step, a candidate, a load; bytes a row, a checkpoint.

What is timed is the recipe's own sampler, rewards, learner and evaluation, at the batch shapes that the run will form,
so the rates stay true when those get faster. The parts tell how far they are (:mod:`raftune.progress`) and the clock
reads that, so one call tells its loading, each of its steps and its end apart. All it writes goes into a folder of the
caller.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from . import files, table
from .build import Parts
from .clock import Watch, watched
from .estimate import Line, Tuning
from .pilot import SEED, changed
from .protocols import Codec
from .resident import resident
from .score import Rewards
from .show import COLUMNS
from .types import Candidate, Scored

T = TypeVar("T")
STEPS = 3  # of the optimiser; the first also makes room
FIGURES = (*COLUMNS, "sample/length_mean", "time/sample_s", "memory/sample_bytes")  # for which a report has charts


def tiled(candidates: Sequence[T], count: int) -> list[T]:
    """So many, the same ones again."""
    return [candidates[at % len(candidates)] for at in range(count)]


@dataclass(frozen=True)
class Judged:
    """How long rewards take: ``first`` once more the first time, ``again`` after another model was in memory."""

    each: float
    first: float
    most: int | None


def judged(rewards: Rewards | None, candidates: Sequence[Candidate], count: int, budget: float) -> Judged:
    """Seconds a candidate, at as many as the run scores at once if there is time."""
    if rewards is None:
        return Judged(0.0, 0.0, None)
    with watched() as first:
        rewards.parts(candidates)
    with watched() as again:
        rewards.parts(candidates)
    each = again.seconds / len(candidates)
    some = min(count, int(budget / 8 / max(each, 1e-9)))
    most = again.most
    if some > len(candidates):
        with watched() as full:
            rewards.parts(tiled(candidates, some))
        each, most = full.seconds / some, full.most
    return Judged(each, max(0.0, first.seconds - each * len(candidates)), most)


def reload(rewards: Rewards | None, candidates: Sequence[Candidate], each: float) -> float:
    """Seconds to bring back what a reward keeps in memory, where another model took its place."""
    if rewards is None:
        return 0.0
    with watched() as cold:
        rewards.parts(candidates)
    return max(0.0, cold.seconds - each * len(candidates))


def appraised(parts: Parts, scored: Sequence[Scored], count: int, budget: float) -> tuple[float, int | None]:
    """Seconds of an evaluated candidate for what is told of it besides its reward."""
    recipe = parts.recipe

    def look(some: Sequence[Scored]) -> Watch:
        with watched() as watch:
            parts.modality.appraise(some, parts.model, parts.model, recipe.evaluate.reference)
        return watch

    look(scored[:1])
    watch, some = look(scored), len(scored)
    more = min(count, int(budget / 6 / max(watch.seconds / some, 1e-9)))
    if more > 2 * some:
        watch, some = look(tiled(scored, more)), more
    return watch.seconds / some, watch.most


def drawing() -> None:
    """What draws a run's report is in memory from its first evaluation on."""
    with suppress(ImportError):
        from .report import page  # noqa: F401
        from .report.svg import drawn

        drawn("empty", "", "", lambda axes: None)


def reported(parts: Parts, scored: Sequence[Scored], folder: Path) -> float:
    """Seconds of a report, of two rounds that have the usual figures."""
    try:
        from .report import page
        from .report.record import Record
    except ImportError:
        return 0.0
    for number in range(2):
        here = folder / "rounds" / f"{number:04d}"
        for name in ("heldout", "scored"):
            table.write_scored(here / f"{name}.parquet", scored, parts.modality.codec, set())
        files.write_json(here / "metrics.json", dict.fromkeys(FIGURES, 1.0) | {"round": number})
    with watched() as watch:
        page.write(folder / page.NAME, [Record.of(folder)])
    return watch.seconds


@dataclass(frozen=True)
class Tuned:
    """How long a tuning takes, and the checkpoint it wrote."""

    seconds: Tuning
    policy: Path
    most: int | None


def tuned(parts: Parts, scored: Sequence[Scored], folder: Path, budget: float, step: float) -> Tuned:
    """A tuning of a few steps at the real batch size; of one, of fewer outputs, where ``step`` (seconds expected of an
    output) says that there is no time."""
    tune, out = parts.recipe.tune, folder / "policy"
    steps = max(1, min(STEPS, int(budget / 2 / max(step * tune.batch_size, 1e-9))))
    outputs = max(1, min(tune.batch_size, int(budget / 2 / max(step, 1e-9))))
    learner = changed(parts.learner, epochs=1, batch_size=outputs, steps=steps, max_epochs=steps)
    lesson = tiled(scored, outputs if hasattr(tune, "steps") else outputs * steps)  # else the lesson makes the steps
    resident.free()
    with watched() as watch:
        learner.tune(parts.model, lesson, out, SEED)
    bar = watch.bar("tune")
    ticks = [at for at, units in bar.ticks if units] if bar else []
    if bar is None or len(ticks) < 1:
        return Tuned(Tuning(watch.seconds, 0.0, 0.0), out, watch.most)
    gaps = [after - before for before, after in itertools.pairwise(ticks)]
    first = ticks[0] - bar.begun
    each = min(first, sum(gaps) / len(gaps)) if gaps else first
    begin = bar.begun - watch.begun + first - each
    return Tuned(Tuning(begin, each * tune.batch_size / outputs, watch.ended - ticks[-1]), out, watch.most)


@dataclass(frozen=True)
class Weighed:
    """Bytes of tables on disk, as lines over rows."""

    candidates: Line
    scored: Line
    prompts: Line


def weighed(scored: Sequence[Scored], codec: Codec, folder: Path) -> Weighed:
    """Write the pilot's tables, and the half of them."""
    points: dict[str, list[tuple[float, float]]] = {"candidates": [], "scored": [], "prompts": []}
    for name, some in (("half", scored[: max(1, len(scored) // 2)]), ("whole", scored)):
        place = folder / name / "candidates" / "0.parquet"
        table.write_candidates(place, [one.candidate for one in some], codec)
        points["candidates"].append((len(some), size_of(place.parent)))
        back = table.read_candidates(place, codec)
        again = [dataclasses.replace(one, candidate=own) for one, own in zip(some, back, strict=True)]
        table.write_scored(folder / name / "scored" / "0.parquet", again, codec, set())
        points["scored"].append((len(some), size_of(folder / name / "scored")))
        asked = list({one.candidate.prompt.id: one.candidate.prompt for one in some}.values())
        table.write_prompts(folder / name / "prompts" / "0.parquet", asked)
        points["prompts"].append((len(asked), size_of(folder / name / "prompts")))
    return Weighed(*(Line.through(points[name]) for name in ("candidates", "scored", "prompts")))


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
