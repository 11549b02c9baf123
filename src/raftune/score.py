"""From the parts of a reward to the reward: weights, normalisation, and what happens to what is missing. No torch.

- None or NaN from a reward means *not scored*. An exception, a wrong number of values or an infinite value is an error.
- A part that scored no candidate of a prompt does not apply to that prompt and is left out of its sum (several
  rewards for several tasks, as TRL users write them). A part that scored only some of a prompt's candidates leaves the
  others without a reward: a sum with a hole cannot be ranked against a whole one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .errors import UserError
from .protocols import Reward
from .types import Candidate, Scored, digest

Normalise = Literal["none", "zscore"]
Part = Sequence[float | None]
LARGEST = 1e100  # beyond, sums and squares of rewards overflow


@dataclass(frozen=True)
class Weighted:
    """One part of the reward: its weight, and whether it is standardised over the round first (``zscore``)."""

    reward: Reward
    weight: float = 1.0
    normalise: Normalise = "none"


class RewardError(UserError):
    """A reward broke its contract. The candidates of the round are on disk."""


@dataclass(frozen=True)
class Rewards:
    """A weighted sum of named rewards."""

    members: tuple[Weighted, ...]

    def __post_init__(self) -> None:
        names = [member.reward.name for member in self.members]
        if not names:
            raise UserError("reward: give at least one")
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"reward: two parts are called {name!r}; give one of them another `name`")

    @property
    def version(self) -> str:
        """Changes with the code of the parts, as far as they tell theirs (an attribute ``version``)."""
        return digest([(m.reward.name, getattr(m.reward, "version", "")) for m in self.members]).hex()[:8]

    def parts(self, candidates: Sequence[Candidate]) -> dict[str, list[float | None]]:
        """The raw parts: one list per reward, None where not scored."""
        return {m.reward.name: checked(m.reward.name, m.reward, candidates) for m in self.members}

    def combine(
        self, candidates: Sequence[Candidate], parts: Mapping[str, Part], reference: Mapping[str, Part] | None = None
    ) -> list[Scored]:
        """Normalise each part, weigh, add. ``Scored.parts`` keeps the raw values.

        ``zscore`` is over these ``candidates``; with ``reference`` it is over those parts instead, so that the sums of
        two policies compare (else every policy's mean would be 0).
        """
        terms = []
        for member in self.members:
            name = member.reward.name
            part = parts[name]
            pool = part if reference is None else reference[name]
            values = zscore(part, pool) if member.normalise == "zscore" else part
            terms.append((member.weight, values, _applies(candidates, part)))
        scored = []
        for row, candidate in enumerate(candidates):
            summands = [
                None if values[row] is None else weight * float(values[row] or 0.0)
                for weight, values, applies in terms
                if candidate.prompt.id in applies
            ]
            known = [term for term in summands if term is not None]
            reward = math.fsum(known) if known and len(known) == len(summands) else None
            scored.append(Scored(candidate, reward, {name: part[row] for name, part in parts.items()}))
        return scored

    def watch(self, scored: Sequence[Scored]) -> list[Scored]:
        """What these say, beside the parts of the reward and no part of it."""
        said = self.parts([one.candidate for one in scored])
        return [
            replace(one, parts={**one.parts, **{name: column[row] for name, column in said.items()}})
            for row, one in enumerate(scored)
        ]

    def __call__(self, candidates: Sequence[Candidate]) -> list[Scored]:
        return self.combine(candidates, self.parts(candidates))


def _applies(candidates: Sequence[Candidate], part: Part) -> set[str]:
    return {c.prompt.id for c, value in zip(candidates, part, strict=True) if value is not None}


def zscore(part: Part, pool: Part | None = None) -> list[float | None]:
    """Standardise over the values that exist in ``pool`` (by default the part itself); a constant pool gives 0."""
    values = [value for value in (part if pool is None else pool) if value is not None]
    if not values:
        return [None if value is None else 0.0 for value in part]
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    scale = deviation if deviation > 1e-12 * max(1.0, abs(mean)) else math.inf
    return [None if value is None else (value - mean) / scale for value in part]


def checked(
    name: str, reward: Callable[[Sequence[Candidate]], Sequence[float | None]], candidates: Sequence[Candidate]
) -> list[float | None]:
    """Call a reward and hold it to its contract."""
    try:
        values = list(reward(candidates))
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # their code may also call sys.exit
        raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    if len(values) != len(candidates):
        raise RewardError(f"reward {name!r} returned {len(values)} values for {len(candidates)} candidates")
    return [_number(name, value, candidate) for value, candidate in zip(values, candidates, strict=True)]


def _number(name: str, value: object, candidate: Candidate) -> float | None:
    where = f"for prompt {candidate.prompt.id!r}, candidate {candidate.index}"
    if value is None:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise RewardError(f"reward {name!r} returned {value!r} {where}; a number or None is needed") from None
    if abs(number) > LARGEST:
        raise RewardError(f"reward {name!r} returned {number} {where}; return None for what cannot be scored")
    return None if math.isnan(number) else number
