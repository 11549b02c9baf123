"""A recipe from start to end: the loop, and around it what its caller does: evaluate, log, keep, stop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from . import files, table
from .build import Parts
from .errors import UserError
from .loop import raft
from .prompts import draw
from .store import Run
from .types import Scored, seed_of

HELDOUT = "heldout.parquet"


@dataclass(frozen=True)
class Experiment:
    """A run directory and the parts that work on it."""

    parts: Parts
    run: Run

    @classmethod
    def open(cls, parts: Parts, out: Path) -> Experiment:
        """Open (or resume) the run directory of a recipe."""
        run = Run(out, parts.model, parts.codec, parts.settings)
        with files.replacing(out / "config.yaml") as part:
            part.write_text(yaml.safe_dump(parts.recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        return cls(parts, run)

    def rounds(self) -> Iterator[dict[str, Any]]:
        """Do what remains; yield the figures of each round, those of earlier sessions and of round 0 first."""
        recipe, parts, run = self.parts.recipe, self.parts, self.run
        for number in range(run.last + 1):
            self.evaluate(number)
            yield run.metrics(number)
        loop = raft(
            run,
            lambda number: draw(parts.prompts.train, number, recipe.sample.prompts_per_round, recipe.seed),
            parts.sampler,
            parts.rewards,
            parts.learner,
            recipe.sample.k,
            recipe.rounds,
            parts.select,
            recipe.seed,
            recipe.sample.shard,
        )
        while not self.out_of_patience and (round := next(loop, None)) is not None:
            candidates = [one.candidate for one in round.scored]
            figures = {f"sample/{name}": value for name, value in parts.describe(candidates).items()}
            if (seconds := round.metrics.get("time/sample_s")) and "sample/length_mean" in figures:
                figures["sample/tokens_per_s"] = figures["sample/length_mean"] * len(candidates) / seconds
            run.log(round.number, figures)
            self.evaluate(round.number)
            yield run.metrics(round.number)

    def evaluate(self, number: int) -> None:
        """Held-out figures of a round, if they are due and not there yet; then keep what is worth keeping."""
        recipe, run = self.parts.recipe, self.run
        due = number % recipe.evaluate.every == 0 or number == recipe.rounds
        if due and "heldout/reward_mean" not in run.metrics(number):
            here = run.round(number)
            with here.timed("evaluate"):
                scored = self._heldout(number)
                judged = self.parts.judge(scored)
            run.log(number, {f"heldout/{name}": value for name, value in judged.items()} | here.figures)
        if recipe.keep == "best":
            run.prune({run.best(), run.last})
        else:
            run.prune(set(range(1, run.last + 1)))

    def _heldout(self, number: int) -> list[Scored]:
        """The same uniforms every round: what differs between two rounds is the policy, not the luck of the draw."""
        path = self.run.round(number).folder / HELDOUT
        if not path.exists():
            parts, k = self.parts, self.parts.recipe.evaluate.k
            address = (parts.recipe.seed, "heldout")
            policy = self.run.policy_of(number) if number else parts.model
            scored = parts.rewards(parts.sampler.sample(policy, parts.prompts.heldout, k, address))
            table.write_scored(path, scored, self.run.codec)
        return table.read_scored(path, self.run.codec)

    def heldout(self, number: int) -> list[Scored]:
        """The held-out outputs of an evaluated round."""
        path = self.run.round(number).folder / HELDOUT
        return table.read_scored(path, self.run.codec) if path.exists() else []

    @cached_property
    def patience(self) -> int | None:
        return self.parts.recipe.evaluate.patience

    @property
    def out_of_patience(self) -> bool:
        """No better held-out reward for ``patience`` evaluated rounds."""
        rows = [row for row in self.run.history() if "heldout/reward_mean" in row]
        best = self.run.best()
        return self.patience is not None and sum(row["round"] > best for row in rows) >= self.patience


def dry_run(parts: Parts, samples: int = 2) -> list[tuple[str, str]]:
    """Check everything a run needs before hours are spent: files, columns, model, and the reward on a few samples.

    Returns (what, finding) lines; raises UserError at the first fault.
    """
    recipe = parts.recipe
    prompts, rule, learner = parts.prompts, parts.select, parts.learner
    dropped = ", ".join(f"{count} {rule}" for rule, count in prompts.counts.items() if rule != "rows" and count)
    lines = [
        ("model", parts.model),
        ("prompts", f"{len(prompts.train)} to train, {len(prompts.heldout)} held out; dropped: {dropped or 'none'}"),
        ("select", repr(rule)),
        ("tune", repr(learner)),
    ]
    some = prompts.train[:1]
    scored = parts.rewards(parts.sampler.sample(parts.model, some, max(samples, 1), (recipe.seed, "dry-run")))
    if all(one.reward is None for one in scored):
        raise UserError(f"reward: scored none of {len(scored)} samples of prompt {some[0].id!r}")
    lines += [
        (f"reward {one.reward if one.reward is None else round(one.reward, 4)}", one.candidate.output.text)
        for one in scored
    ]
    return lines


def demonstrate(before: list[Scored], after: list[Scored], count: int, seed: int) -> list[tuple[Scored, Scored]]:
    """``count`` held-out outputs before and after, picked by the seed and not by how they look."""
    pairs = {(one.candidate.prompt.id, one.candidate.index): one for one in after if one.candidate.index == 0}
    both = [(one, pairs[key]) for one in before if (key := (one.candidate.prompt.id, one.candidate.index)) in pairs]
    return sorted(both, key=lambda pair: seed_of(seed, "show", pair[0].candidate.prompt.id))[:count]
