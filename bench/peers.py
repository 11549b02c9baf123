"""RAFT against TRL's GRPO and RLOO on one recipe: one run, one ``result.json``. ``peers_table.py`` puts many together.

    python bench/peers.py --recipe recipes/quickstart.yaml --method grpo --learning-rate 5e-6 --seed 0 --steps 12 \
        --evaluate-every 4 --out runs/peers/grpo-5e-6-0

A step is a round: draw K answers to each of b prompts, score them, learn. A folder that holds a ``result.json`` is
done and is skipped; RAFT resumes at the round, a peer that was killed while it trained begins again.

**Equal**: the initial model; the split; the b prompts of each step and their order (checked at every step); K,
temperature, top-k, top-p, the longest answer, prompts as token ids; the reward's code (a disturbance reaches the
training reward only); all weights are trained, in float32 with bfloat16 autocast where the hardware has it, by AdamW
with gradients clipped at 1. A peer draws the b·K samples of a step in one batch and takes one optimiser step on all of
them; RAFT tunes on what it chose, as its recipe says. Held-out figures come from raftune's own evaluation of the saved
weights, with the same draws for all, after training and in another process: they cost no time and no memory here.

**Each library's own**: TRL's defaults but for the above. Learning rate 1e-6 unless given, linear decay to 0 over
``--steps`` (also where ``--minutes`` ends the run earlier; ``--trl lr_scheduler_type=constant`` changes that), gradient
checkpointing, ``num_iterations`` 1, ratios clipped at 0.2. GRPO: ``beta`` 0 (no KL term, no reference model), loss
``dapo``, advantages scaled by the group's deviation. RLOO: ``beta`` 0.05, so a float32 reference model is in memory
and is run over every sample. ``--trl KEY=VALUE`` changes any of them, and is in the result. Generation is
``model.generate`` under autocast. RAFT: the recipe's ``select`` and ``tune``, linear decay within a round. raftune
tells the allocator to keep freed memory; TRL gets it as it comes (``MALLOC_MMAP_MAX_`` and ``MALLOC_TRIM_THRESHOLD_``
in the environment would give it the same). ``--rows`` samples of a step go through a peer's model at once, the others
by gradient accumulation; neither GRPO's nor RLOO's gradient depends on it, but memory does.

``--until`` evaluates the weights of each evaluated step at once, in another process while training and its clock stand
still, and ends the run where the held-out reward is at it; those weights are not kept.

**Seconds**: of a peer from the begin of ``train()`` to the end of the last step, without loading the model and without
saving weights for evaluation; of RAFT the sum of ``time/round_s``, loading and saving in each round included.
**Memory**: the peak resident set of the process that trained. **Seed**: the recipe's, so that split, prompts and
held-out draws go with it, the same for every method.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import machine
from disturbed import KINDS, Disturbed

from raftune import files
from raftune.build import Parts
from raftune.errors import UserError
from raftune.prompts import draw
from raftune.recipe import load
from raftune.score import Rewards
from raftune.types import Prompt

METHODS = ("raft", "grpo", "rloo")


@dataclass(frozen=True)
class Task:
    """What the command line asked for."""

    recipe: str
    method: str
    learning_rate: float | None
    seed: int | None
    steps: int
    minutes: float | None
    evaluate_every: int | None
    disturb: str
    sigma: float
    rows: int | None
    set: list[str]
    trl: list[str]
    out: Path
    until: float | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """What two sessions on one folder must agree on."""
        return {key: value for key, value in asdict(self).items() if key != "out"}

    @cached_property
    def parts(self) -> Parts:
        changes = [*self.set, f"rounds={self.steps}"]
        changes += [] if self.seed is None else [f"seed={self.seed}"]
        if self.method == "raft" and self.learning_rate is not None:
            changes.append(f"tune.learning_rate={self.learning_rate}")
        path = Path(self.recipe)
        return Parts(_comparable(load(path, changes)), path.parent)

    @property
    def training_rewards(self) -> Rewards:
        """The recipe's reward, disturbed as asked."""
        rewards, one = self.parts.rewards, self.parts.rewards.members[0]
        if self.disturb == "none":
            return rewards
        if len(rewards.members) > 1 or one.weight != 1:
            raise UserError("--disturb: needs a recipe with one reward of weight 1")
        return Rewards((replace(one, reward=Disturbed(one.reward, self.disturb, self.sigma, self.parts.recipe.seed)),))

    def prompts(self, number: int) -> list[Prompt]:
        """The prompts of a step, from 1."""
        recipe = self.parts.recipe
        return draw(self.parts.prompts.train, number, recipe.sample.prompts_per_round, recipe.seed)

    def is_mark(self, step: int) -> bool:
        """Are the weights of this step evaluated, though it may not be the last?"""
        return step == self.steps or bool(self.evaluate_every and step % self.evaluate_every == 0)

    def is_late(self, seconds: float) -> bool:
        return self.minutes is not None and seconds >= 60 * self.minutes

    def arrived(self, step: int, weights: str) -> bool:
        """Does the held-out reward of a step that is evaluated stand at ``--until``? Asked in another process, so that
        training's memory is its own."""
        if self.until is None or not step or not self.is_mark(step):
            return False
        command = [sys.executable, *sys.argv, "--only-evaluate", str(step), weights]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return evaluate(self, weights, step)["heldout/reward_mean"] >= self.until


def _comparable(recipe: Any) -> Any:
    """The recipe; UserError where a peer could not do the same, or figures of two policies would not compare."""
    if recipe.modality != "text":
        raise UserError("peers: only texts; TRL draws no pictures")
    if recipe.sample.stop or recipe.tune.lora:
        raise UserError("peers: sample.stop and tune.lora are not compared here; leave them out")
    if any(part.normalise != "none" for part in recipe.reward):
        raise UserError("peers: normalised rewards do not compare between runs; set normalise: none")
    return recipe


def train_raft(task: Task) -> dict[str, Any]:
    """raftune's loop on the recipe; it goes on where an earlier session stopped."""
    from raftune.loop import raft
    from raftune.store import Run

    parts, recipe = task.parts, task.parts.recipe
    settings = parts.settings | {"disturb": task.disturb, "sigma": task.sigma}
    with Run(task.out / "run", parts.model, parts.modality.codec, settings) as run:
        loop = raft(
            run,
            task.prompts,
            parts.sampler,
            task.training_rewards,
            parts.learner,
            recipe.sample.k,
            task.steps,
            parts.select,
            recipe.seed,
            recipe.sample.shard,
            recipe.select.buffer,
        )

        def over() -> bool:
            return task.is_late(sum(_seconds(run.history()))) or task.arrived(run.last, str(run.policy_of(run.last)))

        while not over() and next(loop, None) is not None:
            run.prune({number for number in range(1, run.last + 1) if task.is_mark(number)} | {run.last})
        rows = run.history()
        marks = {number for number in range(1, run.last + 1) if task.is_mark(number)} | {run.last}
        weights = {number: str(Path(run.policy_of(number)).relative_to(task.out)) for number in sorted(marks)}
    return {
        "learning_rate": recipe.tune.learning_rate,
        "samples": sum(row["sample/candidates"] for row in rows),
        "step_seconds": _seconds(rows),
        "sample_reward": [row.get("sample/reward_mean") for row in rows],
        "peak_bytes": machine.device_peak() or max(row["memory/peak_bytes"] for row in rows),
        "weights": weights,
        "own": {"select": recipe.select.model_dump(mode="json"), "tune": recipe.tune.model_dump(mode="json")},
    }


def _seconds(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row["time/round_s"] for row in rows if "time/round_s" in row]


def evaluate(task: Task, weights: str, step: int) -> dict[str, float]:
    """The held-out figures of a checkpoint (``<probe>/<figure>``), by raftune's own evaluation; kept, the weights may
    go."""
    from raftune.experiment import Experiment
    from raftune.store import Run

    kept = task.out / "evaluated" / f"{step:04d}.json"
    if kept.exists():
        return files.read_json(kept)
    parts = task.parts
    with Run(kept.with_suffix(""), weights, parts.modality.codec, parts.settings) as run:
        figures = Experiment(parts, run).complete(
            0
        )  # the checkpoint is that run's beginning, the model the initial one
    found = {
        key: value
        for key, value in figures.items()
        if key.partition("/")[0] in parts.probes and isinstance(value, int | float)
    }
    files.write_json(kept, found)
    return found


def result(task: Task, trained: dict[str, Any]) -> dict[str, Any]:
    """Everything of a run in one mapping."""
    sample = task.parts.recipe.sample
    weights = {0: task.parts.model} | {int(n): str(task.out / path) for n, path in trained["weights"].items()}
    heldout = {step: evaluate(task, weights[step], step) for step in sorted(weights)}
    seconds = trained["step_seconds"]
    return {
        **task.asked,
        "asked_steps": task.steps,
        **{key: value for key, value in trained.items() if key != "weights"},
        "seed": task.parts.recipe.seed,
        "steps": len(seconds),
        "seconds": sum(seconds),
        "seconds_per_step": sum(seconds) / len(seconds),
        "task": {"b": sample.prompts_per_round, **sample.model_dump(mode="json", exclude={"prompts_per_round"})},
        "before": heldout[0],
        "after": heldout[max(heldout)],
        "heldout": heldout,
        "machine": machine.name(),
        "versions": {name: version(name) for name in ("raftune", "torch", "transformers", "trl")},
    }


def arguments() -> tuple[Task, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", required=True, type=int, help="steps (rounds) at most")
    parser.add_argument("--learning-rate", type=float, help="default: the recipe's (raft), TRL's (peers)")
    parser.add_argument("--seed", type=int, help="default: the recipe's")
    parser.add_argument("--minutes", type=float, help="stop at the first step that ends after so much training")
    parser.add_argument("--evaluate-every", type=int, help="also evaluate the weights of every so manieth step")
    parser.add_argument("--until", type=float, help="stop where an evaluated step's held-out reward stands there")
    parser.add_argument("--disturb", default="none", choices=("none", *KINDS), help="the training reward")
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--rows", type=int, help="samples in a peer's model at once (48 or less)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--trl", action="append", default=[], metavar="KEY=VALUE", help="change TRL's configuration")
    parser.add_argument("--keep-weights", action="store_true")
    parser.add_argument("--only-train", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only-evaluate", nargs=2, metavar=("STEP", "WEIGHTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    return Task(**{key: getattr(options, key) for key in Task.__dataclass_fields__}), options


def main() -> None:
    task, options = arguments()
    done, trained, asked = (task.out / name for name in ("result.json", "trained.json", "asked.json"))
    if asked.exists() and files.read_json(asked) != task.asked:
        raise UserError(f"{task.out}: holds another comparison ({asked} tells which); name another --out")
    if done.exists():
        print(f"{done}: there already")
        return
    if options.only_evaluate:
        step, weights = options.only_evaluate
        evaluate(task, weights, int(step))
        return
    if options.only_train:
        from peers_trl import train_peer

        files.write_json(trained, train_raft(task) if task.method == "raft" else train_peer(task))
        return
    _ = task.parts.recipe  # faults of the recipe show before anything is written
    files.write_json(asked, task.asked)
    if not trained.exists() and task.method != "raft":
        shutil.rmtree(task.out / "evaluated", ignore_errors=True)  # of a training that was killed: it begins anew
    if not trained.exists():  # in a process of its own, so that its memory is what training took
        command = [sys.executable, *sys.argv, "--only-train"]
        if code := subprocess.run(command).returncode:
            sys.exit(code)
    figures = files.read_json(trained)
    written = result(task, figures)
    files.write_json(done, written)
    for path in figures["weights"].values() if not options.keep_weights else ():
        shutil.rmtree(task.out / path, ignore_errors=True)
    print(json.dumps({key: written[key] for key in ("method", "steps", "seconds", "before", "after")}, indent=2))


if __name__ == "__main__":
    try:
        main()
    except UserError as fault:
        print(fault, file=sys.stderr)
        sys.exit(2)
