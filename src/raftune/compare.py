"""Two policies on the same prompts: who wins by a reward, a judge or people, and how sure that is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import files, pick
from .config import RewardConfig
from .errors import UserError
from .evaluate import best_of_n, votes
from .evaluate.judge import Judge, Remembered, Tokens, question, verdict
from .evaluate.winrate import TIE, Tally, by_both_orders, by_difference, tally
from .sides import Side
from .types import Candidate, Scored

log = logging.getLogger("raftune")

STORED, MONITOR = "reward", "monitor:"
VERDICTS = "verdicts.jsonl"

Pairs = Sequence[tuple[Scored, Scored]]


@dataclass(frozen=True)
class Found:
    """``outcomes`` of A, one a pair, None where it could not be compared; ``pairs`` as they were scored; ``counts`` of
    what fell to which rule."""

    pairs: Pairs
    outcomes: Sequence[float | None]
    counts: Mapping[str, float] = field(default_factory=dict)


def decided(pairs: Pairs, by: str, judge: Judge | None, folder: Path, margin: float) -> Found:
    """By whom the command names: a judge, votes in a file, a reward."""
    if judge is not None:
        return by_judge(pairs, judge, folder)
    return by_votes(pairs, Path(by), folder) if by.endswith(".jsonl") else by_reward(pairs, by, margin)


def by_reward(pairs: Pairs, by: str, margin: float = 0.0) -> Found:
    """``by``: ``reward`` (as it is stored), ``monitor:NAME`` (a stored part), or what a recipe's reward may ``use``."""
    whole: list[tuple[Scored, Scored]] = []
    outcomes: list[float | None] = []
    for a, b in _rescored(pairs, by):
        if a.reward is None or b.reward is None:  # a hole on one side is one on both: their curves are about the same
            whole.append((replace(a, reward=None), replace(b, reward=None)))
            outcomes.append(None)
        else:
            whole.append((a, b))
            outcomes.append(by_difference(a.reward, b.reward, margin))
    if all(outcome is None for outcome in outcomes):
        raise UserError(f"--by {by}: no pair has a reward on both sides; name a reward to score them by")
    return Found(whole, outcomes, {"unscored": outcomes.count(None)})


def _rescored(pairs: Pairs, by: str) -> Pairs:
    if by == STORED:
        parts = [sorted(name for name in one.parts) for one in pairs[0]]
        if parts[0] != parts[1]:
            log.warning("the two have other rewards (%s; %s): --by SPEC scores both alike", *map(", ".join, parts))
        return pairs
    if by.startswith(MONITOR):
        name = by.removeprefix(MONITOR)
        for one in pairs[0]:
            if name not in one.parts:
                raise UserError(f"--by {by}: no such column; there are {', '.join(one.parts) or 'none'}")
        return [(replace(a, reward=a.parts[name]), replace(b, reward=b.parts[name])) for a, b in pairs]
    rewards = pick.rewards([RewardConfig(use=by)])
    a, b = (rewards([pair[place].candidate for pair in pairs]) for place in (0, 1))
    return list(zip(a, b, strict=True))


def by_judge(pairs: Pairs, judge: Judge, folder: Path) -> Found:
    """Each pair is asked about in both orders; answers that are the same text are a tie and not asked about.

    What the judge says is remembered in ``folder``. An answer that is no verdict is counted and makes a tie.
    """
    texts = [(str(a.candidate.output), str(b.candidate.output)) for a, b in pairs]
    differ = [place for place, (a, b) in enumerate(texts) if a != b]
    asked = [
        question(pairs[place][0].candidate.prompt, *order)
        for place in differ
        for order in (texts[place], texts[place][::-1])
    ]
    remembered = Remembered(judge, folder / VERDICTS)
    said = [verdict(answer) for answer in remembered.answers(asked)]
    outcomes: list[float | None] = [TIE] * len(pairs)
    for row, place in enumerate(differ):
        outcomes[place] = by_both_orders(said[2 * row], said[2 * row + 1])
    orders = list(zip(said[::2], said[1::2], strict=True))
    counts = {
        "unparsed": said.count(None),
        "orders_disagree": sum({one, other} == {"A"} or {one, other} == {"B"} for one, other in orders),
        "same_text": len(pairs) - len(differ),
    }
    return Found(pairs, outcomes, counts | _price(judge, remembered.spent(asked)))


def _price(judge: Judge, spent: Tokens | None) -> dict[str, float]:
    """What the verdicts took, whenever they were asked for: tokens, and money where the price is known."""
    if spent is None:
        return {}
    cost = judge.cost(spent)
    return {"prompt_tokens": spent[0], "completion_tokens": spent[1]} | ({} if cost is None else {"cost": cost})


def by_votes(pairs: Pairs, path: Path, folder: Path) -> Found:
    """What people said of the pairs that ``votes.write`` laid into ``folder``."""
    outcomes, counts = votes.read(path, folder, pairs)
    return Found(pairs, outcomes, {"without_vote": outcomes.count(None), **counts})


def result(a: Side, b: Side, by: str, found: Found, unpaired: int, seed: int = 0) -> dict[str, Any]:
    """What compare.json holds; see docs/evaluation.md."""
    counted = [
        (pair[0].candidate.prompt.id, outcome)
        for pair, outcome in zip(found.pairs, found.outcomes, strict=True)
        if outcome is not None
    ]
    total = tally(counted, seed)
    told = {"by": by, "unpaired": unpaired, **found.counts} | ({} if total is None else _told(total))
    for name, side, place in (("a", a, 0), ("b", b, 1)):
        curve = best_of_n.curve([pair[place] for pair in found.pairs])
        told[name] = {
            "name": side.name,
            "table": str(side.path),
            "round": side.number,
            "figures": side.figures,
            "best_of_n": {str(n): value for n, value in curve.items()},
        }
    length = pick.modality(a.modality).length
    return told | (_lengths(found, length) if length is not None else {})


def _told(total: Tally) -> dict[str, Any]:
    return {
        "pairs": total.pairs,
        "prompts": total.prompts,
        **{name: getattr(total, name) for name in ("win", "tie", "loss")},
        **{f"{name}_share": getattr(total, name) / total.pairs for name in ("win", "tie", "loss")},
        "win_rate": total.win_rate,
        "interval": list(total.interval),
        "interval_by": total.interval_by,
    }


def _lengths(found: Found, length: Callable[[Candidate], int]) -> dict[str, Any]:
    """Mean words of both sides; ``longer_won``: of the pairs that were decided, the share that the longer one won."""
    words = [tuple(length(one.candidate) for one in pair) for pair in found.pairs]
    means = {name: sum(pair[place] for pair in words) / len(words) for place, name in enumerate("ab")}
    decided = [
        (outcome > TIE) == (a > b)
        for (a, b), outcome in zip(words, found.outcomes, strict=True)
        if outcome is not None and outcome != TIE and a != b
    ]
    return {"words_mean": means} | ({"longer_won": sum(decided) / len(decided)} if decided else {})


def opened(folder: Path) -> Path:
    """A folder for what a comparison writes; UserError where it cannot be one, before any work."""
    if (folder / "fingerprint").exists():
        raise UserError(f"--out {folder}: is a run's directory; name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be a directory ({error.strerror})") from None
    files.sweep(folder)
    return folder
