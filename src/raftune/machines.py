"""What a recipe would take on a machine that is known by its data sheet: nothing is run, nothing is measured.

Of a text recipe. A pass over a token costs two floating-point operations a weight, a backward pass twice that (Kaplan
et al., arXiv 2001.08361, section 2.1); a decoding step reads the weights and each row's cache once. Answers are taken
at full length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from . import bounds
from .advice import advise
from .build import Parts
from .demands import Demands
from .errors import UserError
from .estimate import Decoder, Disk, Drawn, Estimate, Line, Rates, Tuning, Work, predict
from .memory_of_text import stages
from .pick import model as located
from .recipe import validated
from .shapes import adapter_of, shape_of, weights_in
from .strict import Strict

PACKAGED = Path(__file__).with_name("machines.yaml")
CONTEXT = 0.6e9  # bytes that a device's own libraries take
ROW, TOKEN = 60.0, 12.0  # bytes of a candidate and its tokens in a table (recipes/quickstart.yaml)


class Reached(Strict, frozen=True):
    """Shares of the data sheet's figures; ``layer_ms``: what starting a layer's kernels takes at least, from Python."""

    matmul: float = Field(default=0.4, gt=0, le=1)
    memory: float = Field(default=0.6, gt=0, le=1)
    layer_ms: float = Field(default=0.5, ge=0)


class Machine(Strict, frozen=True):
    """A device as its data sheet has it: TFLOP/s, GB/s, GB. ``devices``: raftune works on one; the price is for all.
    ``price_per_hour``: of the machine, in EUR."""

    bf16_tflops: float = Field(gt=0)
    fp32_tflops: float | None = Field(default=None, gt=0)
    memory_gb_s: float = Field(gt=0)
    disk_gb_s: float = Field(default=1.0, gt=0)
    memory_gb: float = Field(gt=0)
    devices: int = Field(default=1, ge=1)
    price_per_hour: float | None = Field(default=None, ge=0)
    source: str | None = None
    reached: Reached = Reached()


@cache
def packaged() -> dict[str, dict]:
    return yaml.safe_load(PACKAGED.read_text(encoding="utf-8"))


def machine(name: str) -> Machine:
    """One of ours by name, or a file. UserError names the key and the mend."""
    if name in packaged():
        return validated(Machine, packaged()[name], f"--machine {name}")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--machine {name}: no such file, and no machine of ours; use {', '.join(packaged())}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a machine is a mapping of keys: {', '.join(Machine.model_fields)}")
    return validated(Machine, raw, str(path))


@dataclass(frozen=True)
class Paper:
    """A recipe on paper: its demands and the machine."""

    demands: Demands
    machine: Machine

    @property
    def flops(self) -> float:
        return self.machine.bf16_tflops * 1e12 * self.machine.reached.matmul

    @property
    def bandwidth(self) -> float:
        return self.machine.memory_gb_s * 1e9 * self.machine.reached.memory

    def rates(self) -> Rates:
        """Seconds, from operations and bytes."""
        parts, recipe = self.demands.parts, self.demands.parts.recipe
        tune: Any = recipe.tune
        shape = shape_of(parts.model, 2)
        disk = self.machine.disk_gb_s * 1e9
        tokens = self.longest
        each = 2 * shape.parameters / self.flops
        adapter = adapter_of(parts.model, tune.lora.r, tune.lora.target_modules) if tune.lora else None
        passes = (4 if adapter is not None else 6) + (2 if recipe.tune.gradient_checkpointing else 0)
        tuned = shape.parameters if adapter is None else adapter
        step = passes * shape.parameters * tokens * recipe.tune.batch_size / self.flops + 28 * tuned / self.bandwidth
        step = max(step, 3 * self.starting)
        load = shape.stored / disk
        return Rates(
            first=load,
            load=4 * tuned / disk + (0.0 if adapter is None else load),
            score=Line(0.0, tokens * self._judges(recipe.reward) / self.flops),
            watch=Line(0.0, tokens * self._judges(recipe.evaluate.monitor) / self.flops),
            read=Line(0.0, tokens * each),
            tuning=Tuning(load, step, 4 * tuned / disk),
        )

    @property
    def decoder(self) -> Decoder:
        shape = shape_of(self.demands.parts.model, 2)
        each = 2 * shape.parameters / self.flops
        step = max(shape.weights / self.bandwidth, self.starting)
        return Decoder(each, step, each, shape.cache / self.bandwidth)

    @property
    def starting(self) -> float:
        """Seconds that the kernels of a pass take to start."""
        return self.machine.reached.layer_ms / 1000 * shape_of(self.demands.parts.model, 2).layers

    @property
    def longest(self) -> float:
        """Tokens of a prompt, in the mean, with an answer at full length."""
        lengths = [self.demands.length(prompt) for prompt in self.demands.prompts]
        return sum(lengths) / len(lengths) + self.new

    @property
    def new(self) -> int:
        return self.demands.parts.recipe.sample.max_new_tokens  # type: ignore[attr-defined]

    def _judges(self, configs) -> float:
        """Operations a token of the rewards that are models."""
        models = [c.use.partition(":")[2] for c in configs if c.use.startswith(("classifier:", "classified:"))]
        return sum(weights_in(located(name, self.demands.parts.beside)) for name in models)

    def work(self) -> Work:
        parts, recipe = self.demands.parts, self.demands.parts.recipe
        alive = [1.0] * self.new

        def drawn(prompts, k: int) -> Drawn:
            return Drawn(self.decoder, self.demands.batches(None, parts.model, prompts, k), alive)

        own = self.demands.drawers["policy"].k
        return Work(
            rounds=recipe.rounds,
            sampled=[drawn(self.demands.prompts, own)],
            probes=[drawn(probe.prompts, probe.k) for probe in parts.probes.values()],
            candidates=recipe.sample.prompts_per_round * recipe.sample.k,
            chosen=chosen_by(recipe.select.rule, recipe.sample.prompts_per_round, recipe.sample.k),
            batch=recipe.tune.batch_size,
            passes=recipe.tune.epochs,  # type: ignore[attr-defined]
            buffer=recipe.select.buffer,
            every=recipe.evaluate.every,
        )


def chosen_by(rule: str, prompts: int, k: int) -> float:
    """How many a rule chooses of a round where nothing is tied, filtered or below a floor."""
    name, _, value = rule.partition(":")
    if name == "above":
        return prompts * k
    share = float(value or 1)
    return max(1, math.floor(share * prompts * k)) if share < 1 or name == "top" else prompts * min(k, int(share))


def on_paper(parts: Parts, name: str, price: float | None = None) -> Estimate:
    """The estimate from a data sheet. UserError for pictures, which have no such closed form here."""
    if parts.recipe.modality != "text":
        raise UserError("--machine: reckons texts only; for pictures leave it out, and the machine at hand is measured")
    sheet, demands = machine(name), Demands.of(parts, here=False)
    paper = Paper(demands, sheet)
    work, rates = paper.work(), paper.rates()
    rounds = predict(work, rates)
    tuned = rates.tuning.end * sheet.disk_gb_s * 1e9
    row = ROW + TOKEN * paper.new
    rows = 2 * work.candidates + work.chosen
    disk = Disk(tuned, row * rows, 2 * row * demands.heldout, once=3000.0)
    found = {stage: bounds.total(terms) for stage, terms in stages(demands, 2).items()}
    memory = {stage: CONTEXT + bounds.HEAP * need for stage, need in found.items()}
    hourly = price if price is not None else sheet.price_per_hour
    reached = f"{sheet.reached.matmul:.0%} of its matrix products, {sheet.reached.memory:.0%} of its memory's rate, "
    reached += f"{sheet.reached.layer_ms:g} ms a layer at least"
    lines = [f"from a data sheet ({sheet.source or name}), not measured; assumed to be reached: {reached}"]
    lines += [f"every answer {paper.new} tokens long; rewards that are no classifier: not counted", *demands.unknown]
    over = [stage for stage, most in memory.items() if most > sheet.memory_gb * 1e9]
    lines += [f"{', '.join(over)}: may not fit into {sheet.memory_gb:g} GB"] if over else []
    seconds = math.fsum(math.fsum(one.values()) for one in rounds)
    return Estimate(
        rounds=rounds,
        start=rates.start,
        disk=disk.end(work, parts.recipe.keep == "all"),
        disk_peak=disk.peak(work, parts.recipe.keep == "all"),
        memory=memory,
        terms=stages(demands, 2),
        cost=None if hourly is None else hourly * seconds / 3600,
        paid=demands.paid * work.rounds if demands.priced else None,
        assumes=lines,
        advice=advise(work, rates),
        of=name,
    )
