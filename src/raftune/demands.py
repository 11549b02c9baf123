"""What a recipe asks for, counted: prompts, batches, candidates, what is chosen, and the memory its shapes need."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from . import bounds
from .batches import within_budget
from .build import Parts
from .estimate import Batch, Decoder, Drawn, Work, survival
from .likelihood import BATCH_TOKENS
from .pilot import Pilot, of_another
from .prompts import draw
from .rank import NothingChosen, choose
from .sources import EndpointSource, ModelSource, PoolSource
from .types import Policy, Prompt, Scored, seed_of

SEEN = 1.5  # a run holds more outputs than the trial from which its need was seen
ROWS = 1024  # candidates decoded at once on a device that is not here


@dataclass(frozen=True)
class Counted:
    """Of a set of prompts to evaluate on."""

    prompts: int
    rows: int


@dataclass(frozen=True)
class Drawer:
    """A model that draws in this recipe: its sampler, its checkpoint, and how many of each prompt."""

    sampler: Any
    policy: Policy
    k: int


@dataclass(frozen=True)
class Demands:
    """A recipe's parts with the prompts of a typical round (the first) and a measure of prompts."""

    parts: Parts
    prompts: Sequence[Prompt]
    length: Callable[[Prompt], int]
    here: bool = True
    """The policy can be loaded here; else batches are as large as a device takes them."""

    @classmethod
    def of(cls, parts: Parts, here: bool = True) -> Demands:
        recipe = parts.recipe
        prompts = draw(parts.prompts.train, 1, recipe.sample.prompts_per_round, recipe.seed)
        return cls(parts, prompts, parts.modality.prompt_length(parts.model) or (lambda prompt: 0), here)

    @cached_property
    def drawers(self) -> dict[str, Drawer]:
        """The policy, which also is evaluated, and local teachers."""
        recipe, parts = self.parts.recipe, self.parts
        sources = recipe.sample.sources or {}
        own = sum(one.k for one in sources.values() if one.use == "policy") if sources else recipe.sample.k
        found = {"policy": Drawer(parts.sampler, parts.model, own)}
        for member in getattr(parts.sources, "members", ()):
            if isinstance(sources[member.name], ModelSource):
                found[member.name] = Drawer(member.sampler.sampler, member.sampler.model, member.k)
        return found

    def pilot(self, name: str, budget: float) -> Pilot:
        """Rates of one of them."""
        one, shard = self.drawers[name], self.prompts[: self.parts.recipe.sample.shard]
        if not hasattr(one.sampler, "planned"):
            return of_another(one.sampler, one.policy, shard, max(1, one.k))
        return self.parts.modality.pilot(one.sampler, one.policy, shard, self.length, max(1, one.k), budget)

    @cached_property
    def probe_counts(self) -> list[Counted]:
        return [Counted(len(probe.prompts), len(probe.prompts) * probe.k) for probe in self.parts.probes.values()]

    @property
    def heldout(self) -> int:
        return sum(one.rows for one in self.probe_counts)

    def batches(self, sampler: Any, policy: Policy, prompts: Sequence[Prompt], k: int) -> list[Batch]:
        """As the sampler forms them, shard by shard."""
        found, shard = [], self.parts.recipe.sample.shard
        for at in range(0, len(prompts), shard) if k else ():
            some = prompts[at : at + shard]
            lengths = [self.length(prompt) for prompt in some]
            if not self.here or not hasattr(sampler, "planned"):
                most = ROWS if not self.here else len(some) * k
                rows = [min(most, len(some) * k - at) for at in range(0, len(some) * k, most)]
                found += [Batch(one, -(-one // k), max(lengths)) for one in rows]
                continue
            for batch in sampler.planned(policy, lengths, k):
                rows = {row for row, _ in batch}
                found.append(Batch(len(batch), len(rows), max(lengths[row] for row in rows)))
        return found

    def work(self, pilots: Mapping[str, Pilot], scored: Sequence[Scored]) -> Work:
        """What a run does, in batches and steps."""
        recipe, tune = self.parts.recipe, self.parts.recipe.tune
        sampled = [
            Drawn(
                pilots[name].rates,
                self.batches(one.sampler, one.policy, self.prompts, one.k),
                _alive(pilots[name], one),
            )
            for name, one in self.drawers.items()
        ]
        probes = []
        for probe in self.parts.probes.values():
            batches = self.batches(probe.sampler, self.parts.model, probe.prompts, probe.k)
            alive = _alive(pilots["policy"], Drawer(probe.sampler, self.parts.model, probe.k))
            rates = pilots["policy"].rates
            if not isinstance(rates, Decoder):
                rates = replace(rates, row=rates.row * self._larger(probe.sampler))
            probes.append(Drawn(rates, batches, alive))
        return Work(
            rounds=recipe.rounds,
            sampled=sampled,
            probes=probes,
            candidates=recipe.sample.prompts_per_round * recipe.sample.k,
            chosen=self.chosen(scored),
            batch=tune.batch_size,
            passes=getattr(tune, "max_epochs", None) or getattr(tune, "epochs", 1),
            most=getattr(tune, "steps", None),
            buffer=recipe.select.buffer,
            every=recipe.evaluate.every,
            loads=2 if self.parts.modality.compares else 1,  # to compare, the initial policy takes its place
        )

    def _larger(self, sampler: Any) -> float:
        """How much more a picture of a further set costs than one of the rounds: by its area and its steps."""
        own, ratio = self.parts.sampler, 1.0
        for name in ("height", "width", "steps"):
            here, there = getattr(sampler, name, None), getattr(own, name, None)
            ratio *= here / there if here and there else 1.0
        return ratio

    def chosen(self, scored: Sequence[Scored]) -> float:
        """How many the recipe's rule would choose of a round of candidates like these, which it is shown: those of the
        same content where there are some, else any; the mean of a few such rounds."""
        recipe, counts = self.parts.recipe, []
        alike: dict[str, list[Scored]] = {}
        for one in scored:
            alike.setdefault(str(one.candidate.prompt.content), []).append(one)
        for trial in range(8):
            made = []
            for prompt in self.prompts:
                pool = alike.get(str(prompt.content), scored)
                for index in range(recipe.sample.k):
                    one = pool[seed_of("estimate", trial, prompt.id, index) % len(pool)]
                    made.append(replace(one, candidate=replace(one.candidate, prompt=prompt, index=index)))
            try:
                counts.append(len(choose(self.parts.select, made, ("estimate", trial))))
            except NothingChosen:
                counts.append(0)
        return math.fsum(counts) / len(counts)

    def step_expected(self, pilot: Pilot) -> float:
        """About how many seconds an output costs in tuning, from what reading or drawing one costs."""
        if isinstance(pilot.rates, Decoder):
            tokens = max(self.length(prompt) for prompt in self.prompts) + getattr(
                self.parts.sampler, "max_new_tokens", 1
            )
            return 4 * pilot.rates.prompt * tokens
        return pilot.rates.row

    @property
    def priced(self) -> bool:
        sources = (self.parts.recipe.sample.sources or {}).values()
        return any(isinstance(one, EndpointSource) and one.price is not None for one in sources)

    @property
    def paid(self) -> float:
        """What endpoints ask for a round: every prompt and every answer at full length, in the policy's tokens."""
        money, sample = 0.0, self.parts.recipe.sample
        for one in (sample.sources or {}).values():
            if isinstance(one, EndpointSource) and one.price is not None:
                longest = one.max_new_tokens or getattr(sample, "max_new_tokens", 0)
                tokens = sum(self.length(prompt) for prompt in self.prompts) * one.k
                money += (tokens * one.price.input + longest * one.k * len(self.prompts) * one.price.output) / 1e6
        return money

    @property
    def unknown(self) -> list[str]:
        """What is not counted."""
        sources = self.parts.recipe.sample.sources or {}
        lines = []
        for name, one in sources.items():
            if isinstance(one, EndpointSource):
                lines.append(f"{name}: how long its server takes is not known and not counted; answers at full length")
            elif isinstance(one, PoolSource):
                lines.append(f"{name}: answers from a file take no time")
        if self.parts.recipe.evaluate.patience is not None:
            lines.append("patience may end it earlier")
        return lines

    def bounds(self, seen: Mapping[str, float], process: float) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Bytes that each stage reaches at most, and of what they are made; what has no formula is what was seen."""
        needs: dict[str, float] = {name: SEEN * max(0.0, most - process) for name, most in seen.items()}
        terms: dict[str, dict[str, float]] = {}
        kept = 0.0
        stages = self.parts.modality.stages
        if stages is not None and hasattr(self.parts.sampler, "planned"):
            found = stages(self)
            kept = found["sample"]["weights"]
            terms = {name: {"process": process, **one} for name, one in found.items()}
            needs |= {name: bounds.total(one) for name, one in found.items()}
        return bounds.reached(needs, process, self.parts.recipe.rounds > 1, kept), terms


def _alive(pilot: Pilot, one: Drawer) -> list[float]:
    """The share of its answers that are still going, token by token."""
    if not isinstance(pilot.rates, Decoder):
        return []
    outputs = [candidate.output for candidate in pilot.candidates]
    done = [output.finish_reason == "stop" for output in outputs]
    return survival([len(output.token_ids) for output in outputs], done, one.sampler.max_new_tokens)


def groups(pairs: Sequence[tuple[int, int]], budget: int = BATCH_TOKENS) -> list[list[tuple[int, int]]]:
    """Lengths of prompts and outputs as they go through a model together."""
    return within_budget(pairs, lambda pair: pair, budget)


def tuned_alike(pairs: Sequence[tuple[int, int]], batch: int, budget: int) -> list[list[tuple[int, int]]]:
    """The same of an optimiser's steps, of outputs of like length."""
    order = sorted(pairs, key=sum)
    steps = [order[at : at + batch] for at in range(0, len(order), batch)]
    return [group for step in steps for group in groups(step, budget)]
