"""From what a recipe says to the parts of the loop. Which class a name stands for is :mod:`raftune.pick`'s to say."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import pick
from . import prompts as prompt_rules
from .config import Recipe, TextRecipe
from .errors import UserError
from .figures import OWN, RESERVED, watched
from .protocols import Learner, Sampler, Select
from .recipe import validated
from .score import Rewards
from .types import Prompt

FILES = re.compile(r"evaluate\.also\.\w+\.path|sample\.sources\.[\w-]+\.path")


@dataclass(frozen=True)
class Parts:
    """A recipe's implementations. ``beside`` is the recipe's folder; ``folder`` the run's, where what was paid for is
    kept; ``shards``: so many of a watched folder make a round, and the recipe's prompts are only held out; ``given``:
    the reward itself, where it is at hand and the recipe only names it."""

    recipe: Recipe
    beside: Path = Path()
    folder: Path | None = None
    shards: int | None = None
    given: Rewards | None = None

    @cached_property
    def model(self) -> str:
        """The initial policy as ``from_pretrained`` takes it."""
        return pick.model(self.recipe.model, self.beside)

    @cached_property
    def modality(self) -> pick.Modality:
        return pick.modality(self.recipe.modality)

    @cached_property
    def sampler(self) -> Sampler:
        """What is evaluated with: the policy's own."""
        return pick.sampler(self.recipe.sample, self.beside)

    @cached_property
    def sources(self) -> Sampler:
        """What a round's candidates come from."""
        if isinstance(self.recipe, TextRecipe) and self.recipe.sample.halving is not None:
            if self.shards is not None:
                raise UserError("sample.halving: a watched folder has what it has; leave it out")
            return pick.halving(self.recipe, self.sampler, self.rewards, self.select)
        folder = None if self.folder is None else self.folder / "endpoint"
        return pick.sources(self.recipe.sample, self.beside, folder)

    @cached_property
    def learner(self) -> Learner:
        return pick.learner(self.recipe.tune, self.beside)

    @cached_property
    def rewards(self) -> Rewards:
        return self.given or pick.rewards(self.recipe.reward, self.beside)

    @cached_property
    def shaped(self) -> Rewards:
        """What candidates are ranked by: the reward, less β·log(p/p0) where the recipe has a ``kl_coefficient``."""
        beta = self.recipe.kl_coefficient
        if not beta:
            return self.rewards
        if self.rewards.elsewhere:
            raise UserError(
                "kl_coefficient: is worked out here, by the initial policy; leave out the reward's elsewhere"
            )
        others = [name for name, source in (self.recipe.sample.sources or {}).items() if source.use != "policy"]
        if others or self.shards is not None:
            where = f"sample.sources.{others[0]}" if others else "a watched folder"
            raise UserError(
                f"kl_coefficient: {where} does not tell how likely the policy finds its answers; leave β at 0, or "
                "sample from the policy alone"
            )
        return pick.kl_shaped(self.rewards, beta, self.model)

    @cached_property
    def monitors(self) -> Rewards | None:
        """Scorers that only watch."""
        given = self.recipe.evaluate.monitor
        if any(config.elsewhere for config in given):
            raise UserError("evaluate.monitor: elsewhere does nothing there; leave it out")
        configs = [config.model_copy(update={"name": config.name or "monitor"}) for config in given]
        monitors = pick.rewards(configs, self.beside) if configs else None
        Rewards((*self.rewards.members, *(monitors.members if monitors else ())))  # no two of one name
        for one in monitors.members if monitors else ():
            if OWN.fullmatch(one.reward.name):
                raise UserError(
                    f"evaluate.monitor: {one.reward.name!r} is the name of another held-out figure; set another `name`"
                )
        return monitors

    @property
    def monitor_names(self) -> list[str]:
        return [one.reward.name for one in self.monitors.members] if self.monitors else []

    @property
    def watched(self) -> list[str]:
        """The figures that a person wants to see besides the held-out reward."""
        return watched(self.monitor_names, list(self.recipe.evaluate.also))

    @cached_property
    def select(self) -> Select:
        return pick.select(self.recipe.select)

    @cached_property
    def prompts(self) -> prompt_rules.Prompts:
        length = self.modality.prompt_length(self.model)
        if self.shards is not None:
            return prompts(self.recipe, length, self.beside, drawn=False)
        return drawn_from(self.recipe, prompts(self.recipe, length, self.beside), self.sources)

    @cached_property
    def probes(self) -> dict[str, Probe]:
        """What is evaluated on, by name: the held-out prompts and the recipe's further ones."""
        evaluate = self.recipe.evaluate
        probes = {"heldout": Probe(self.prompts.heldout, evaluate.k, self.sampler)}
        for name, config in evaluate.also.items():
            if name in RESERVED or not name.isidentifier():
                raise UserError(f"evaluate.also.{name}: figures of that name have another meaning; choose another")
            drawn = self.recipe.sample
            for key in {"k", "prompts_per_round", "shard", "backend", "sources", "halving"} & config.sample.keys():
                raise UserError(f"evaluate.also.{name}.sample.{key}: does nothing there; k stands beside sample")
            if config.sample:
                where = f"evaluate.also.{name}.sample"
                drawn = validated(
                    type(drawn), drawn.model_dump(exclude={"sources", "k", "halving"}) | config.sample, where
                )
            asked = self.prompts.heldout
            if config.path is not None:
                asked = tuple(read_prompts(self.recipe, config.path, None, self.beside)[0])
            if not asked:
                raise UserError(f"evaluate.also.{name}.path: {config.path} has no usable prompt")
            probes[name] = Probe(asked, config.k, pick.sampler(drawn, self.beside))
        return probes

    @property
    def settings(self) -> dict[str, Any]:
        """What the run's fingerprint holds: the recipe and the content of its local files."""
        settings = self.recipe.settings | ({} if self.shards is None else {"watch.shards": self.shards})
        paths = [key for key in settings if key in {"prompts.path", "prompts.heldout"} or FILES.fullmatch(key)]
        for key in paths:
            file = pick.beside_of(str(settings[key]), self.beside)
            if file.is_file():
                settings[f"{key} sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        return settings


@dataclass(frozen=True)
class Probe:
    """Prompts to evaluate on, how many outputs of each, and what draws them."""

    prompts: Sequence[Prompt]
    k: int
    sampler: Sampler


def read_prompts(
    recipe: Recipe, path: str, length: Callable[[Prompt], int] | None, beside: Path = Path()
) -> tuple[list[Prompt], dict[str, int]]:
    """The usable prompts of a file or dataset, and how many fell to which rule."""
    config = recipe.prompts
    rows = prompt_rules.read_rows(str(pick.beside_of(path, beside)), config.split, config.name)
    return prompt_rules.tidy(prompt_rules.parse(rows, config.column), length, config.max_tokens)


def prompts(
    recipe: Recipe, length: Callable[[Prompt], int] | None, beside: Path = Path(), drawn: bool = True
) -> prompt_rules.Prompts:
    """Read, tidy and split the prompts; count what fell to which rule. ``drawn``: rounds are drawn from them."""
    config = recipe.prompts
    usable, counts = read_prompts(recipe, config.path, length, beside)
    if isinstance(config.heldout, str):
        train, (heldout, dropped) = usable, read_prompts(recipe, config.heldout, length, beside)
        counts |= {f"heldout_{rule}": count for rule, count in dropped.items()}
    else:
        train, heldout = prompt_rules.split(usable, config.heldout, recipe.seed)
    if not heldout:
        raise UserError(f"prompts.heldout: {config.heldout} has no usable prompt")
    kept = prompt_rules.without(train, heldout) if config.disjoint else train
    counts["also_heldout"] = len(train) - len(kept)
    if drawn:
        _enough(recipe, len(kept))
    return prompt_rules.Prompts(tuple(kept), tuple(heldout), counts)


def drawn_from(recipe: Recipe, found: prompt_rules.Prompts, sources: Sampler) -> prompt_rules.Prompts:
    """The prompts that a round can be drawn from: where all candidates come from pools, those with an answer."""
    if check := getattr(sources, "check", None):
        check(found.train, found.heldout)
    covers = getattr(sources, "covers", lambda prompt: True)
    train = tuple(prompt for prompt in found.train if covers(prompt))
    counts = {**found.counts, "unanswered": len(found.train) - len(train)}
    _enough(recipe, len(train))
    return prompt_rules.Prompts(train, found.heldout, counts)


def _enough(recipe: Recipe, left: int) -> None:
    if recipe.sample.prompts_per_round > left:
        raise UserError(
            f"sample.prompts_per_round: {recipe.sample.prompts_per_round} is more than the {left} prompts "
            f"that {recipe.prompts.path} leaves to train on"
        )
