"""What a recipe will take, from measured rates: arithmetic alone, in closed form. No torch.

Seconds, bytes and money of each round and in all. Who measured the rates does not matter here: a rehearsal on the
machine at hand (:mod:`raftune.rehearsal`) or a data sheet (:mod:`raftune.machines`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

STAGES = ("sample", "score", "tune", "evaluate")


@dataclass(frozen=True)
class Batch:
    """What is drawn at once: ``rows`` candidates of ``prompts`` prompts, the longest of ``prompt`` tokens."""

    rows: int
    prompts: int = 1
    prompt: int = 0


@dataclass(frozen=True)
class Line:
    """Seconds of n things: ``fixed + each · n``."""

    fixed: float = 0.0
    each: float = 0.0

    def seconds(self, things: float) -> float:
        return self.fixed + self.each * things

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Line:
        """The line through (things, seconds), least squares; neither part below 0. One point: no fixed part."""
        count = len(points)
        n, t = math.fsum(x for x, _ in points) / count, math.fsum(y for _, y in points) / count
        spread = math.fsum((x - n) ** 2 for x, _ in points)
        each = math.fsum((x - n) * (y - t) for x, y in points) / spread if spread else 0.0
        if each <= 0 or t - each * n < 0:
            return cls(0.0, t / n) if n and (each > 0 or not spread) else cls(t, 0.0)
        return cls(t - each * n, each)


@dataclass(frozen=True)
class Decoder:
    """Rates of a text sampler, seconds: a padded ``prompt`` token read; a decoding ``step``, and of it a live ``row``
    and a ``position`` that a row attends to; ``candidate``: what is done of each outside the decoding."""

    prompt: float
    step: float
    row: float
    position: float = 0.0
    candidate: float = 0.0

    def seconds(self, batches: Sequence[Batch], alive: Sequence[float]) -> float:
        """``alive[t]``: share of answers that are longer than t tokens; its length is the most an answer can have.

        Rows that are done leave; a batch ends when all are done, so its fixed cost runs while any of them is likely
        alive: 1 - (1 - alive)^rows.
        """
        spent = 0.0
        for batch in batches:
            spent += self.prompt * batch.prompts * batch.prompt + self.candidate * batch.rows
            for at, share in enumerate(alive[1:], 1):  # the first token comes from the prompt's own pass
                live = share * batch.rows
                spent += self.step * (1 - (1 - share) ** batch.rows) + self.row * live
                spent += self.position * live * (batch.prompt + at)
        return spent


@dataclass(frozen=True)
class Drawer:
    """Rates of a sampler of pictures, or of any other: a ``batch``, and of it each ``row``."""

    batch: float
    row: float

    def seconds(self, batches: Sequence[Batch], alive: Sequence[float]) -> float:
        return sum(self.batch + self.row * batch.rows for batch in batches)


def survival(lengths: Sequence[int], finished: Sequence[bool], most: int) -> list[float]:
    """``alive[t]`` for t in 0..most-1: the share of answers longer than t tokens, from answers of which some were cut.

    Kaplan and Meier's estimate: at each length, of those that got so far, how many ended there. Beyond the longest that
    was drawn the mean hazard goes on.
    """
    alive, share = [], 1.0
    seen = sum(lengths)
    hazard = sum(finished) / seen if seen else 0.0
    longest = max(lengths, default=0)
    for at in range(most):
        if at:
            there = sum(length >= at for length in lengths)
            ended = sum(length == at and done for length, done in zip(lengths, finished, strict=True))
            share *= 1 - (ended / there if at <= longest and there else hazard)
        alive.append(share)
    return alive


@dataclass(frozen=True)
class Tuning:
    """Seconds: ``begin`` until the first step, ``step``, ``end``: the checkpoint written."""

    begin: float
    step: float
    end: float

    def seconds(self, steps: int) -> float:
        return self.begin + self.step * steps + self.end


@dataclass(frozen=True)
class Drawn:
    """Something that is drawn: in which ``batches``, by which ``rates``, how long."""

    rates: Decoder | Drawer
    batches: Sequence[Batch]
    alive: Sequence[float] = ()

    @property
    def rows(self) -> int:
        return sum(batch.rows for batch in self.batches)

    @property
    def seconds(self) -> float:
        return self.rates.seconds(self.batches, self.alive)


@dataclass(frozen=True)
class Rates:
    """Seconds. ``load``: of a tuned policy, ``first``: of the initial one with all that comes first; ``score`` and
    ``watch`` (monitors): of candidates, ``scored_first`` once more the first time; ``read``: what is told of evaluated
    candidates; ``note``: what is written of a candidate, outside the stages; ``report``: the page after each round;
    ``start``: before the first round."""

    first: float
    load: float
    score: Line
    watch: Line
    read: Line
    tuning: Tuning
    scored_first: float = 0.0
    note: float = 0.0
    report: float = 0.0
    start: float = 0.0


@dataclass(frozen=True)
class Work:
    """What a recipe asks for. ``chosen``: of a round; ``passes`` over a lesson of which ``batch`` make a step, at most
    ``most`` steps; ``loads``: how often an evaluation after a tuning loads a model; ``paid``: money a round."""

    rounds: int
    sampled: Sequence[Drawn]
    probes: Sequence[Drawn]
    candidates: int
    chosen: float
    batch: int
    passes: int = 1
    most: int | None = None
    buffer: int = 0
    every: int = 1
    loads: int = 2
    paid: float = 0.0

    def steps(self, number: int) -> int:
        """Optimiser steps of a round, the winners of earlier rounds learned again."""
        lesson = max(1, round(self.chosen * (1 + min(self.buffer, number - 1))))
        steps = self.passes * math.ceil(lesson / self.batch)
        return steps if self.most is None else min(self.most, steps)

    def due(self, number: int) -> bool:
        return number % self.every == 0 or number == self.rounds


@dataclass(frozen=True)
class Disk:
    """Bytes: of a ``policy`` and of what lies beside it, of a round's ``tables``, of an evaluation's, of a tuning's
    ``state`` while it is made; ``once``: of the run."""

    policy: float
    tables: float
    evaluation: float
    state: float = 0.0
    once: float = 0.0

    def tables_of(self, work: Work) -> float:
        evaluations = sum(work.due(number) for number in range(work.rounds + 1))
        return self.once + self.tables * work.rounds + self.evaluation * evaluations

    def end(self, work: Work, keep_all: bool) -> tuple[float, float]:
        """The least and the most that stays: the best policy may be the last one, or the initial one."""
        tables = self.tables_of(work)
        if keep_all:
            everything = tables + self.policy * work.rounds
            return everything, everything
        return tables + self.policy, tables + self.policy * min(2, work.rounds)

    def peak(self, work: Work, keep_all: bool) -> float:
        """While the last round is tuned, the best and the last are there too."""
        policies = work.rounds if keep_all else min(3, work.rounds)
        return self.tables_of(work) + self.policy * policies + self.state


@dataclass(frozen=True)
class Estimate:
    """``rounds``: seconds of each stage in each round, round 0 first; ``memory``: bytes of each stage, ``terms`` what
    they are made of, ``seen`` what the rehearsal itself reached; ``cost`` and ``paid``: of the machine, of endpoints;
    None without a price."""

    rounds: Sequence[Mapping[str, float]]
    start: float
    disk: tuple[float, float]
    disk_peak: float
    memory: Mapping[str, float] = field(default_factory=dict)
    terms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seen: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None
    paid: float | None = None
    assumes: Sequence[str] = ()
    advice: str = ""
    of: str = "this machine"

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of each stage in all."""
        return {stage: math.fsum(row.get(stage, 0.0) for row in self.rounds) for stage in (*STAGES, "other")}

    @property
    def seconds(self) -> float:
        return self.start + math.fsum(self.stages.values())

    @property
    def dominant(self) -> str:
        """The stage that takes most."""
        return max(STAGES, key=lambda stage: self.stages[stage])

    def per_round(self, stage: str) -> float | None:
        """Seconds of a stage in a round that has it."""
        spent = [row[stage] for row in self.rounds if row.get(stage)]
        return math.fsum(spent) / len(spent) if spent else None


def predict(work: Work, rates: Rates) -> list[dict[str, float]]:
    """Seconds of each stage, round 0 (the first evaluation) first."""
    heldout = sum(probe.rows for probe in work.probes)
    evaluation = sum(probe.seconds for probe in work.probes)
    evaluation += rates.score.seconds(heldout) + rates.watch.seconds(heldout) + rates.read.seconds(heldout)
    sampled = sum(one.seconds for one in work.sampled)
    rows: list[dict[str, float]] = []
    for number in range(work.rounds + 1):
        first = number == 0
        row = (
            {}
            if first
            else {
                "sample": sampled + (rates.load if number > 1 else 0.0),
                "score": rates.score.seconds(work.candidates),
                "tune": rates.tuning.seconds(work.steps(number)),
            }
        )
        row["other"] = rates.report + (0.0 if first else rates.note * work.candidates)
        if first or work.due(number):
            loads = rates.first + rates.scored_first if first else rates.load * work.loads
            row["evaluate"] = evaluation + loads
        rows.append(row)
    return rows
