"""From a recipe's parts to its :class:`Estimate`: what it asks for, counted, and rates from a rehearsal of them."""

from __future__ import annotations

import gc
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import rehearsal
from .advice import advise
from .build import Parts
from .clock import watched as timed
from .demands import Demands
from .estimate import Disk, Estimate, Line, Rates, Work, predict
from .pilot import SEED, Pilot, changed
from .rehearsal import Tuned, Weighed
from .resident import resident
from .types import Scored

SECONDS = 30.0


@dataclass(frozen=True)
class Rehearsed:
    """What was measured. ``scored``: the pilot's candidates with their rewards."""

    pilots: dict[str, Pilot]
    scored: Sequence[Scored]
    tuned: Tuned
    rates: Rates
    weighed: Weighed
    policy_bytes: int
    seen: dict[str, float]
    process: int


def forecast(
    parts: Parts, price: float | None = None, seconds: float = SECONDS, began: float | None = None
) -> Estimate:
    """Rehearse a recipe's parts for about so many seconds and say what its run will take. Leaves no file.

    ``price``: of an hour of this machine. ``began``: when this process did, since a run begins like it.
    """
    demands = Demands.of(parts)
    with _quiet(), tempfile.TemporaryDirectory(prefix="raftune-estimate-") as folder:
        try:
            measured = rehearse(parts, demands, Path(folder), seconds, began)
        finally:
            resident.free()
    work = demands.work(measured.pilots, measured.scored)
    rounds = predict(work, measured.rates)
    disk = disk_of(demands, work, measured)
    keep_all = parts.recipe.keep == "all"
    needs, terms = demands.bounds(measured.seen, measured.process)
    found = Estimate(
        rounds=rounds,
        start=measured.rates.start,
        disk=disk.end(work, keep_all),
        disk_peak=disk.peak(work, keep_all),
        memory=needs,
        terms=terms,
        seen=measured.seen,
        paid=demands.paid * work.rounds if demands.priced else None,
        assumes=assumptions(demands, measured, work),
        advice=advise(work, measured.rates),
    )
    return found if price is None else replace(found, cost=price * found.seconds / 3600)


def rehearse(parts: Parts, demands: Demands, folder: Path, seconds: float, began: float | None) -> Rehearsed:
    """All parts in the order in which a run has them, each for its share of the time."""
    recipe, share = parts.recipe, seconds / 3
    start = 0.0 if began is None else time.time() - began
    if recipe.report:
        rehearsal.drawing()
    pilots = {name: demands.pilot(name, share / len(demands.drawers)) for name in demands.drawers}
    own = pilots["policy"]
    candidates = own.candidates
    read, read_most = 0.0, None
    judged = rehearsal.judged(parts.shaped, candidates, recipe.sample.shard * recipe.sample.k, share)
    watched = rehearsal.judged(parts.monitors, candidates, demands.heldout, share)
    scored = parts.shaped(candidates)
    if any(one.candidate.output is not None for one in scored):
        read, read_most = rehearsal.appraised(parts, scored, demands.heldout, share)
    expected = demands.step_expected(own)
    tuned = rehearsal.tuned(parts, scored, folder, share, expected)
    resident.free()
    with timed() as loaded:
        changed(parts.sampler, max_new_tokens=1, steps=1).sample(tuned.policy, demands.prompts[:1], 1, SEED)
    again = rehearsal.reload(parts.shaped, candidates, judged.each)
    again_watched = rehearsal.reload(parts.monitors, candidates, watched.each)
    weighed = rehearsal.weighed(scored, parts.modality.codec, folder / "tables")
    rates = Rates(
        first=own.first,
        load=max(0.0, loaded.seconds),
        score=Line(again, judged.each),
        watch=Line(again_watched, watched.each),
        read=Line(0.0, read),
        tuning=tuned.seconds,
        scored_first=max(0.0, judged.first - again) + max(0.0, watched.first - again_watched),
        start=start,
        report=rehearsal.reported(parts, scored, folder / "page") if recipe.report else 0.0,
    )
    drawing = max((one.most for one in pilots.values() if one.most is not None), default=None)
    looking = max((most for most in (drawing, judged.most, watched.most, read_most) if most is not None), default=None)
    seen = {"sample": drawing, "score": judged.most, "tune": tuned.most, "evaluate": looking}
    size = rehearsal.size_of(tuned.policy)
    gc.collect()  # a tuning's model is in cycles
    resident.free()
    from .shapes import resident_bytes

    known = {name: float(most) for name, most in seen.items() if most is not None}
    return Rehearsed(pilots, scored, tuned, rates, weighed, size, known, resident_bytes())


def disk_of(demands: Demands, work: Work, measured: Rehearsed) -> Disk:
    """Bytes of what a run writes, from the pilot's own tables and checkpoint."""
    recipe = demands.parts.recipe
    drawn = [len(one.output.token_ids) for one in (s.candidate for s in measured.scored) if _told(one.output)]
    mean = math.fsum(drawn) / len(drawn) if drawn else 1.0
    expected = math.fsum(work.sampled[0].alive) if work.sampled and work.sampled[0].alive else mean
    longer = max(1.0, expected / mean) if mean else 1.0
    weighed = measured.weighed

    def rows(line: Line, count: float, files: int = 1) -> float:
        return line.fixed * files + line.each * count * longer

    shards = math.ceil(recipe.sample.prompts_per_round / recipe.sample.shard)
    tables = rows(weighed.candidates, work.candidates, shards) + rows(weighed.scored, work.candidates)
    tables += rows(weighed.scored, work.chosen) + weighed.prompts.seconds(recipe.sample.prompts_per_round) + 4096
    evaluation = 0.0
    for probe in demands.probe_counts:
        evaluation += rows(weighed.candidates, probe.rows, math.ceil(probe.prompts / recipe.sample.shard))
        evaluation += rows(weighed.scored, probe.rows)
    policy = float(measured.policy_bytes)
    moments = 2 * policy if recipe.tune.optimizer == "carry" else 0.0
    stored = 3 * policy if work.steps(work.rounds) > recipe.tune.save_steps else 0.0
    return Disk(policy + moments, tables, evaluation, stored, 3000.0 + 2000.0 * work.rounds)


def _told(output: Any) -> bool:
    return getattr(output, "token_ids", None) is not None


def assumptions(demands: Demands, measured: Rehearsed, work: Work) -> list[str]:
    """What the figures rest on, one line each."""
    own = measured.pilots["policy"]
    lines = [f"rates of {len(own.candidates)} candidates drawn here, just now; no other work on the machine"]
    if work.sampled and work.sampled[0].alive:
        mean = math.fsum(work.sampled[0].alive)
        cut = "" if own.whole else ", of answers that were cut for want of time"
        lines.append(f"answers stay as long as they are now: {mean:.0f} tokens{cut}")
    lines.append(f"{work.chosen:.0f} of {work.candidates} candidates chosen a round, as the initial policy's would be")
    return lines + demands.unknown


@contextmanager
def _quiet() -> Iterator[None]:
    """The parts' own notes are about a run, and there is none."""
    log = logging.getLogger("raftune")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
