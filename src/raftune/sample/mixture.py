"""Several sources of candidates under their names: policy, teachers, black boxes, people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..protocols import Sampler
from ..types import Candidate, Policy, Prompt


@dataclass(frozen=True)
class Member:
    """One source: its name in every row, and how many of it per prompt (None: all)."""

    name: str
    sampler: Sampler
    k: int | None
    own: bool = False
    """The policy itself: drawn as without a mixture."""
    tells: bool = False
    """Its rows say themselves who wrote them."""


@dataclass(frozen=True)
class Mixture:
    """The candidates of each source, in the order of the recipe; ``index`` runs over them all. A source that has fewer
    for a prompt leaves no gap."""

    members: tuple[Member, ...]

    def sample(self, policy: Policy, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        """Each member's own k of each prompt, one member after the other, so that one model is in memory at a time;
        ``k`` is their sum and says nothing more."""
        found: dict[str, list[Candidate]] = {prompt.id: [] for prompt in prompts}
        names = {member.name for member in self.members}
        for member in self.members:
            address = seed if member.own else (*seed, member.name)
            for one in member.sampler.sample(policy, prompts, member.k, address):  # type: ignore[arg-type]
                place = len(found[one.prompt.id])
                told = member.tells and one.source not in names  # an earlier run's "policy" is not this one's
                source = one.source if told else member.name
                found[one.prompt.id].append(replace(one, index=place, source=source))
        return [one for prompt in prompts for one in found[prompt.id]]

    def check(self, train: Sequence[Prompt], heldout: Sequence[Prompt]) -> None:
        """What the members have to say of the prompts."""
        for member in self.members:
            if check := getattr(member.sampler, "check", None):
                check(train, heldout)

    def covers(self, prompt: Prompt) -> bool:
        """Is there a member that has something for this prompt?"""
        tell = [getattr(member.sampler, "covers", None) for member in self.members]
        return any(covers is None or covers(prompt) for covers in tell)

    def figures(self, seed: tuple[object, ...]) -> dict[str, float]:
        """``<name>/…``: what the members say of their work under an address: tokens, cost."""
        figures = {}
        for member in self.members:
            if tell := getattr(member.sampler, "figures", None):
                figures |= {f"{member.name}/{key}": value for key, value in tell((*seed, member.name)).items()}
        return figures
