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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from . import table
from .build import Parts
from .clock import Watch, watched
from .estimate import Decoder, Drawer, Line, Tuning
from .protocols import Codec
from .rates import fitted
from .resident import resident
from .score import Rewards
from .types import Candidate, Policy, Prompt, Scored

T = TypeVar("T")
SEED = ("estimate",)
FEW = 4  # pictures that tell how many there is time for
PILOT = 32  # answers drawn to their end
STEPS = 3  # of the optimiser; the first also makes room


def changed(part: T, **changes: Any) -> T:
    """The part with those of the options that it has; somebody's own part may have none."""
    known = {one.name for one in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else set()
    given = {name: value for name, value in changes.items() if name in known}
    return dataclasses.replace(part, **given) if given else part  # type: ignore[type-var]


@dataclass(frozen=True)
class Pilot:
    """What a sampler drew, and its rates. ``whole``: none was cut for want of time."""

    rates: Decoder | Drawer
    candidates: Sequence[Candidate]
    first: float
    whole: bool
    most: int | None


def drawn_text(sampler: Any, policy: Policy, prompts: Sequence[Prompt], length: Any, k: int, budget: float) -> Pilot:
    """Rates of a text sampler: a few answers to their end, then some steps of a batch as the run will form it."""
    few = list(prompts[: max(1, PILOT // min(k, 4))])
    with watched() as warm:
        changed(sampler, max_new_tokens=2).sample(policy, few[:1], 1, SEED)
    lengths = [length(prompt) for prompt in few]
    while len(few) > 1 and len(sampler.planned(policy, lengths[: len(few)], min(k, 4))) > 1:
        few = few[: len(few) // 2]
    with watched() as short:
        changed(sampler, max_new_tokens=4).sample(policy, few, min(k, 4), SEED)
    step = min(short.bar("decode").gaps or [short.seconds / 4])  # type: ignore[union-attr]
    cut = max(4, int(budget / 4 / max(step, 1e-6)))
    with watched() as pilot:
        answers = changed(sampler, max_new_tokens=min(sampler.max_new_tokens, cut)).sample(policy, few, min(k, 4), SEED)
    points = _steps(pilot, answers, max(lengths[: len(few)]))
    some, rows = _largest(sampler, policy, prompts, length, k)
    prefill = _prefill(short) / (len(few) * max(lengths[: len(few)]))
    fitting = int(budget / 4 / max(prefill * max(map(length, some)), 1e-9))
    some = some[-max(1, fitting) :]
    new = max(3, min(12, sampler.max_new_tokens, int(budget / 4 / max(step * len(some) * rows / len(answers), 1e-6))))
    with watched() as full:
        drawn = changed(sampler, max_new_tokens=new).sample(policy, some, rows, SEED)
    longest = max(length(prompt) for prompt in some)
    points += _steps(full, drawn, longest)
    end = full.bar("decode")
    after = (full.seconds - (end.ticks[-1][0] - end.begun)) if end else 0.0
    step, row, position = fitted(points)
    rates = Decoder(_prefill(full) / (len(some) * longest), step, row, position, max(0.0, after) / len(drawn))
    return Pilot(rates, answers, warm.seconds, cut >= sampler.max_new_tokens, full.most)


def _prefill(watch: Watch) -> float:
    bar = watch.bar("decode")
    return bar.ticks[0][0] - bar.begun if bar else watch.seconds


def _steps(watch: Watch, answers: Sequence[Candidate], prompt: int) -> list[tuple[float, float, float]]:
    """(rows, positions, seconds) of each decoding step; the first few make room and are left out where others are."""
    bar = watch.bar("decode")
    lengths = [len(answer.output.token_ids) for answer in answers]
    points = []
    for at, gap in enumerate(bar.gaps if bar else [], 1):
        live = sum(length > at for length in lengths)
        points.append((float(live), float(live * (prompt + at)), gap))
    return points[2:] if len(points) > 5 else points


def _largest(sampler: Any, policy: Policy, prompts: Sequence[Prompt], length: Any, k: int) -> tuple[list[Prompt], int]:
    """The prompts of the batch with the most rows, and how many rows each has."""
    batch = max(sampler.planned(policy, [length(prompt) for prompt in prompts], k), key=len)
    rows = sorted({row for row, _ in batch})
    return [prompts[row] for row in rows], max(1, len(batch) // len(rows))


def drawn_pictures(sampler: Any, policy: Policy, prompts: Sequence[Prompt], k: int, budget: float) -> Pilot:
    """Rates of a sampler of pictures: a batch as the run will form it, at two numbers of steps if all take too long."""
    with watched() as first:
        steps = sampler.passes(policy)
    with watched() as warm:
        changed(sampler, steps=1).sample(policy, prompts[:1], 1, SEED)
    batch = max(sampler.planned(policy, [0] * len(prompts), k), key=len)
    few = min(FEW, len(batch))
    tries = []
    for _ in range(2):  # something else may have had the machine for a moment
        with watched() as one:
            changed(sampler, steps=1).sample(policy, prompts[:1], few, SEED)
        tries.append(one)
    one = min(tries, key=lambda watch: watch.seconds)
    rows = max(few, min(len(batch), int(few * budget / 6 / max(one.seconds, 1e-6))))
    each = max(1, rows // len(prompts))  # of as many prompts as there is room for
    some = prompts[: max(1, rows // each)]
    with watched() as two:
        changed(sampler, steps=2).sample(policy, some, each, SEED)
    fitting = max(4, int(budget / 2 / max(two.seconds / 2, 1e-6)))
    with watched() as more:
        drawn = changed(sampler, steps=min(steps, fitting)).sample(policy, some, each, SEED)
    whole = Line.through([(min(steps, 2), two.seconds), (min(steps, fitting), more.seconds)]).seconds(steps)
    seconds = more.seconds if fitting >= steps else whole
    most = more.most
    if most is not None and one.most is not None and rows > few:  # a picture more takes as much again
        most += int(max(0, most - one.most) / (rows - few) * (len(batch) - rows))
    return Pilot(Drawer(0.0, seconds / len(drawn)), drawn, first.seconds + warm.seconds, fitting >= steps, most)


def drawn_otherwise(sampler: Any, policy: Policy, prompts: Sequence[Prompt], k: int) -> Pilot:
    """Rates of somebody's own sampler: a prompt's candidates, twice."""
    with watched() as first:
        sampler.sample(policy, prompts[:1], k, SEED)
    with watched() as again:
        drawn = sampler.sample(policy, prompts[:2], k, (*SEED, 1))
    return Pilot(Drawer(0.0, again.seconds / max(1, len(drawn))), drawn, first.seconds, True, again.most)


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
    pictures = parts.recipe.modality == "image"
    lesson = tiled(scored, outputs if pictures else outputs * steps)
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
