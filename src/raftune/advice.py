"""Which part of a run takes most, and the setting that would change it. No torch."""

from __future__ import annotations

import math
from dataclasses import replace

from .estimate import STAGES, Rates, Work, predict


def fewer(work: Work) -> dict[str, tuple[str, Work]]:
    """For each stage a setting that makes it shorter, and the work that is left then."""
    halved = [replace(one, batches=[replace(b, rows=-(-b.rows // 2)) for b in one.batches]) for one in work.sampled]
    less = replace(work, sampled=halved, candidates=-(-work.candidates // 2))
    if work.most is not None:
        tuned = ("tune.steps halved", replace(work, most=-(-work.most // 2)))
    elif work.passes > 1:
        tuned = (f"tune.epochs {work.passes - 1}", replace(work, passes=work.passes - 1))
    else:
        tuned = ("sample.prompts_per_round halved", replace(less, chosen=work.chosen / 2))
    looked = [replace(one, batches=[replace(b, rows=-(-b.rows // 2)) for b in one.batches]) for one in work.probes]
    if sum(work.due(number) for number in range(1, work.rounds + 1)) > 1:
        evaluated = (f"evaluate.every {2 * work.every}", replace(work, every=2 * work.every))
    else:
        evaluated = ("half as many held-out outputs", replace(work, probes=looked))
    return {
        "sample": ("sample.k halved", less),
        "score": ("sample.k halved", less),
        "tune": tuned,
        "evaluate": evaluated,
    }


def advise(work: Work, rates: Rates) -> str:
    """Which stage takes most, and what one setting would save: a line."""

    def stages(of: Work) -> dict[str, float]:
        rounds = predict(of, rates)
        return {stage: math.fsum(row.get(stage, 0.0) for row in rounds) for stage in STAGES}

    now = stages(work)
    stage = max(STAGES, key=lambda name: now[name])
    setting, less = fewer(work)[stage]
    whole, saved = math.fsum(now.values()), math.fsum(now.values()) - math.fsum(stages(less).values())
    if not whole:
        return ""
    return f"{stage} takes {now[stage] / whole:.0%}; {setting} would save {max(0.0, saved) / whole:.0%} of the time"
