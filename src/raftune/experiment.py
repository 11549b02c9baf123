"""A recipe from start to end: the loop, and around it what its caller does: evaluate, log, keep, stop."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from . import alarms, files, pick, table
from .build import Parts
from .config import flatten
from .errors import UserError
from .figures import part_means, said_of, selection, spared
from .ledger import ScoredTable
from .loop import raft
from .prompts import draw
from .provenance import by_source
from .store import RoundFolder, Run
from .stream import Stream
from .tracking import Tracking
from .types import Prompt, Scored

log = logging.getLogger("raftune")


@dataclass(frozen=True)
class Experiment:
    """A run directory, the parts that work on it, and who is told."""

    parts: Parts
    run: Run
    tracking: Tracking = field(default_factory=Tracking)

    @classmethod
    def open(cls, parts: Parts, out: Path) -> Experiment:
        """Open (or resume) the run directory of a recipe."""
        recipe = parts.recipe
        trackers = pick.trackers(recipe.track, out, parts.beside)
        told = flatten(recipe.model_dump(mode="json", exclude={"track"}))
        run = Run(out, parts.model, parts.modality.codec, parts.settings)
        with files.replacing(out / "config.yaml") as part:
            part.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        return cls(parts, run, Tracking(trackers, out, told, {one.key: one.samples for one in recipe.track}))

    def rounds(self, stream: Stream | None = None) -> Iterator[dict[str, Any]]:
        """Do what remains; yield the figures of each round, those of earlier sessions and of round 0 first.

        With a ``stream`` prompts and candidates are those that come in, and it says when to end.
        """
        with self.tracking:
            yield from self._rounds(stream)

    def _rounds(self, stream: Stream | None) -> Iterator[dict[str, Any]]:
        recipe, parts, run = self.parts.recipe, self.parts, self.run
        self._compare_rewards()
        for number in range(run.last + 1):
            yield self.complete(number)
        loop = raft(
            run,
            stream.draw if stream else self._draw,
            stream or parts.sources,
            parts.shaped,
            parts.learner,
            recipe.sample.k,
            recipe.rounds,
            parts.select,
            recipe.seed,
            recipe.sample.shard,
            recipe.select.buffer,
        )
        while run.last < recipe.rounds and not self.out_of_patience:
            if stream and not stream.ready(run.last + 1):
                return
            yield self.complete(next(loop).number)

    def _draw(self, number: int) -> list[Prompt]:
        recipe = self.parts.recipe
        return draw(self.parts.prompts.train, number, recipe.sample.prompts_per_round, recipe.seed)

    def complete(self, number: int) -> dict[str, Any]:
        """Add to a committed round's figures what the loop does not know, if it is not there; keep the best weights."""
        recipe, run = self.parts.recipe, self.run
        if number and "select/tied_prompts" not in run.metrics(number):
            self._describe(number)
        due = number % recipe.evaluate.every == 0 or number == recipe.rounds
        there = number == 0 or (run.round(number).folder / "policy").exists()  # or pruned in an earlier session
        if due and there and "heldout/reward_mean" not in run.metrics(number):
            self._evaluate(number)
        self._sound_alarms(number)
        run.prune({run.best(), run.last} if recipe.keep == "best" else set(range(1, run.last + 1)))
        if recipe.report and number == run.last:
            self._report(live=number < recipe.rounds and not self.out_of_patience)
        self.tracking.tell(number)
        return run.metrics(number)

    def _report(self, live: bool) -> None:
        """Write report.html anew, if its packages are there; hours of work do not end for want of a picture."""
        try:
            from .report import page
            from .report.record import Record

            page.write(self.run.root / page.NAME, [Record.of(self.run.root)], live)
        except ImportError as error:
            log.info("no report.html: it needs %s; pip install 'raftune[report]'", error.name)
        except Exception as error:
            log.warning("report.html was not written: %s: %s", type(error).__name__, error)

    def _sound_alarms(self, number: int) -> None:
        """Note what should make a person look."""
        rows = [row for row in self.run.history() if row["round"] <= number]
        monitors = [f"heldout/{name}" for name in self.parts.monitor_names]
        limits = alarms.Limits(**self.parts.recipe.alarms.model_dump())
        found = alarms.raised(rows, monitors, limits)
        if found != self.run.metrics(number).get("alarms", []):
            self.run.log(number, {"alarms": found})

    def _compare_rewards(self) -> None:
        """Say so if the reward's code changed since an earlier session: the run goes on, but its figures part here."""
        versions = {row.get("heldout/reward_version") for row in self.run.history()} - {None}
        if versions - {self.parts.rewards.version}:
            log.warning("the reward's code changed since this run began: figures of earlier rounds do not compare")

    def _describe(self, number: int) -> None:
        """Figures of what was sampled and chosen, and of what filters and ties left to choose from."""
        here, run, parts = self.run.round(number), self.run, self.parts
        scored, chosen = (ScoredTable([here.folder / f"{name}.parquet"], run.codec) for name in ("scored", "chosen"))
        alone = parts.recipe.sample.sources is None and parts.shards is None
        seconds = run.metrics(number).get("time/sample_s") if alone else None  # else it is not the policy's rate
        figures = parts.modality.describe(scored.candidates, seconds) | part_means(scored)
        if "reward/kl" in figures and parts.shaped is not parts.rewards:
            figures["kl"] = figures.pop("reward/kl")  # of the policy that drew, from the initial one
        if tell := getattr(parts.sources, "figures", None):
            figures |= tell((parts.recipe.seed, number))
        if getattr(parts.recipe.sample, "halving", None):
            figures |= spared(scored, parts.recipe.sample.k)
        of_chosen = parts.modality.describe(chosen.candidates, None)
        run.log(
            number,
            {f"sample/{name}": value for name, value in figures.items()}
            | {f"chosen/{name}": value for name, value in of_chosen.items()}
            | {f"select/{name}": value for name, value in selection(scored, parts.select).items()}
            | by_source(scored, chosen),
        )

    def _evaluate(self, number: int) -> None:
        """Figures on the held-out prompts and on the recipe's further ones."""
        here, parts = self.run.round(number), self.parts
        figures: dict[str, Any] = {"heldout/reward_version": parts.rewards.version}
        with here.timed("evaluate"):
            for name in parts.probes:
                scored = self._evaluated(number, name)
                found = parts.modality.appraise(
                    scored, self.run.policy_of(number), parts.model, parts.recipe.evaluate.reference
                )
                found |= said_of(scored, parts.monitors)
                figures |= {f"{name}/{figure}": value for figure, value in found.items()}
        self.run.log(number, figures | here.figures)

    def _evaluated(self, number: int, name: str) -> list[Scored]:
        """The same draws every round: what differs between two rounds is the policy, not the luck.

        Normalised rewards are standardised by round 0, so that the rounds compare. What monitors say stands beside the
        parts of the reward and is no part of it.
        """
        path = self.run.round(number).folder / f"{name}.parquet"
        if not path.exists():
            parts, probe = self.parts, self.parts.probes[name]
            policy = self.run.policy_of(number)
            here = RoundFolder(path.with_suffix(""), self.run.codec)  # what was drawn stays, whatever the rewards do
            drawn = here.candidates(
                probe.prompts,
                parts.recipe.sample.shard,
                lambda some: probe.sampler.sample(policy, some, probe.k, (parts.recipe.seed, name)),
            )
            candidates = list(drawn)
            values, first = parts.rewards.parts(candidates), self.evaluated(0, name)
            reference = {part: [one.parts[part] for one in first] for part in values} if first else None
            scored = parts.rewards.combine(candidates, values, reference)
            if parts.monitors:
                scored = parts.monitors.watch(scored)
            table.write_scored(path, scored, self.run.codec)
        return self.evaluated(number, name)

    def evaluated(self, number: int, name: str = "heldout") -> list[Scored]:
        """The outputs on which a round was evaluated, or none."""
        path = self.run.round(number).folder / f"{name}.parquet"
        return table.read_scored(path, self.run.codec) if path.exists() else []

    @property
    def out_of_patience(self) -> bool:
        """No better held-out reward for ``patience`` evaluated rounds."""
        patience, best = self.parts.recipe.evaluate.patience, self.run.best()
        later = [row for row in self.run.history() if "heldout/reward_mean" in row and row["round"] > best]
        return patience is not None and len(later) >= patience


def dry_run(parts: Parts, samples: int = 2) -> list[tuple[str, str]]:
    """Check everything a run needs before hours are spent: files, columns, model, and the reward on a few samples.

    Returns (what, finding) lines; raises UserError at the first fault.
    """
    recipe = parts.recipe
    trackers = pick.trackers(recipe.track, Path(), parts.beside)
    prompts, rule, learner = parts.prompts, parts.select, parts.learner
    _ = parts.probes  # faults of what is only evaluated show here too
    counted = {rule: count for rule, count in prompts.counts.items() if rule not in {"rows", "heldout_rows"}}
    dropped = ", ".join(f"{count} {rule}" for rule, count in counted.items() if count)
    lines = [
        ("model", parts.model),
        ("prompts", f"{len(prompts.train)} to train, {len(prompts.heldout)} held out; dropped: {dropped or 'none'}"),
        ("select", repr(rule)),
        ("tune", repr(learner)),
        *([("track", ", ".join(trackers))] if trackers else []),
    ]
    asked = prompts.train if recipe.sample.sources else prompts.train + prompts.heldout  # pools may know those alone
    some = [max(asked, key=lambda prompt: len(str(prompt.content)))]  # the one that may not fit
    trial = pick.sources(recipe.sample.trial(max(samples, 1)), parts.beside)
    drawn = trial.sample(parts.model, some, max(samples, 1), (recipe.seed, "dry-run"))
    scored = parts.shaped(drawn)
    if parts.monitors:
        parts.monitors(drawn)
    if all(one.reward is None for one in scored):
        raise UserError(f"reward: scored none of {len(scored)} samples of prompt {some[0].id!r}")
    lines += [
        (f"reward {one.reward if one.reward is None else round(one.reward, 4)}", str(one.candidate.output))
        for one in scored
    ]
    if check := getattr(learner, "check", None):
        check(parts.model)
    return lines
