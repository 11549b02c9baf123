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

import numpy as np

from .columns import Array, floats, keys_of, known, optional
from .errors import UserError
from .protocols import Reward
from .types import Candidate, Scored, digest

Normalise = Literal["none", "zscore"]
Part = Sequence[float | None] | Array
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
    def elsewhere(self) -> bool:
        """Every part is worked out by another process or machine (see :class:`raftune.protocols.Reward`)."""
        return all(getattr(member.reward, "elsewhere", False) for member in self.members)

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
        """The candidates with :meth:`reward`. ``Scored.parts`` keeps the raw values."""
        rewards = optional(self.reward(keys_of(candidates).prompt, parts, reference))
        return [
            Scored(candidate, rewards[row], {name: part[row] for name, part in parts.items()})
            for row, candidate in enumerate(candidates)
        ]

    def reward(self, prompt: Array, parts: Mapping[str, Part], reference: Mapping[str, Part] | None = None) -> Array:
        """Normalise each part, weigh, add: one float64 a candidate, NaN where it has no reward. ``prompt``: the
        number of each candidate's prompt.

        ``zscore`` is over these candidates; with ``reference`` it is over those parts instead, so that the sums of
        two policies compare (else every policy's mean would be 0).
        """
        summands, count = [], int(prompt.max(initial=-1)) + 1
        hole, told = np.zeros(len(prompt), bool), np.zeros(len(prompt), bool)
        for member in self.members:
            part = floats(parts[member.reward.name])
            if len(part) != len(prompt):
                raise ValueError(f"{len(part)} values of {member.reward.name!r} for {len(prompt)} candidates")
            pool = part if reference is None else floats(reference[member.reward.name])
            missing = np.isnan(part)
            applies = (np.bincount(prompt[~missing], minlength=count) > 0)[prompt]
            hole |= missing & applies
            told |= ~missing
            values = zscore(part, pool) if member.normalise == "zscore" else part
            summands.append(member.weight * values)
            summands[-1][missing] = 0.0
        reward = _sums(summands)
        reward[hole | ~told] = math.nan
        if np.isinf(reward).any():
            raise ValueError("reward must be finite or None (not scored), got an infinite sum; lower the weights")
        return reward

    def watch(self, scored: Sequence[Scored]) -> list[Scored]:
        """What these say, beside the parts of the reward and no part of it."""
        said = self.parts([one.candidate for one in scored])
        return [
            replace(one, parts={**one.parts, **{name: column[row] for name, column in said.items()}})
            for row, one in enumerate(scored)
        ]

    def __call__(self, candidates: Sequence[Candidate]) -> list[Scored]:
        return self.combine(candidates, self.parts(candidates))


def _sums(summands: Sequence[Array]) -> Array:
    """Of each row, rounded once as `math.fsum` does."""
    if len(summands) > 2:
        return np.fromiter(map(math.fsum, zip(*(one.data for one in summands), strict=True)), np.float64)
    total = summands[0] + 0.0  # one addition rounds once, and adding 0 not at all
    for other in summands[1:]:
        total += other
    return total


def zscore(part: Part, pool: Part | None = None) -> Array:
    """Standardise over the values that exist in ``pool`` (by default the part itself); a constant pool gives 0. None or
    NaN stays NaN."""
    values, others = floats(part), known(floats(part if pool is None else pool))
    if not len(others):
        return np.where(np.isnan(values), values, 0.0)
    center = math.fsum(others) / len(others)
    deviation = math.sqrt(math.fsum(((np.asarray(others) - center) ** 2).data) / len(others))
    scale = deviation if deviation > 1e-12 * max(1.0, abs(center)) else math.inf
    return (values - center) / scale


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
