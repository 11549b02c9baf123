"""A sampler's rates at small size: seconds a step, a row, a position or a picture of what the recipe would draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .clock import Watch, watched
from .estimate import Decoder, Drawer, Line
from .rates import fitted
from .types import Candidate, Policy, Prompt

T = TypeVar("T")
SEED = ("estimate",)
FEW = 4  # pictures that tell how many there is time for
ANSWERS = 32  # drawn to their end
Length = Callable[[Prompt], int]


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


def of_text(sampler: Any, policy: Policy, prompts: Sequence[Prompt], length: Length, k: int, budget: float) -> Pilot:
    """Rates of a text sampler: a few answers to their end, then some steps of a batch as the run will form it."""
    few = list(prompts[: max(1, ANSWERS // min(k, 4))])
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


def _largest(
    sampler: Any, policy: Policy, prompts: Sequence[Prompt], length: Length, k: int
) -> tuple[list[Prompt], int]:
    """The prompts of the batch with the most rows, and how many rows each has."""
    batch = max(sampler.planned(policy, [length(prompt) for prompt in prompts], k), key=len)
    rows = sorted({row for row, _ in batch})
    return [prompts[row] for row in rows], max(1, len(batch) // len(rows))


def of_pictures(
    sampler: Any, policy: Policy, prompts: Sequence[Prompt], length: Length, k: int, budget: float
) -> Pilot:
    """Rates of a sampler of pictures: a batch as the run will form it, at two numbers of steps if all take too long."""
    with watched() as first:
        steps = sampler.passes(policy)
    with watched() as warm:
        changed(sampler, steps=1).sample(policy, prompts[:1], 1, SEED)
    batch = max(sampler.planned(policy, [length(prompt) for prompt in prompts], k), key=len)
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


def of_another(sampler: Any, policy: Policy, prompts: Sequence[Prompt], k: int) -> Pilot:
    """Rates of somebody's own sampler: a prompt's candidates, twice."""
    with watched() as first:
        sampler.sample(policy, prompts[:1], k, SEED)
    with watched() as again:
        drawn = sampler.sample(policy, prompts[:2], k, (*SEED, 1))
    return Pilot(Drawer(0.0, again.seconds / max(1, len(drawn))), drawn, first.seconds, True, again.most)
