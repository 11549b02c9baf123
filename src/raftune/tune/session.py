"""One tuning, whatever it tunes: optimiser, schedule, where it stands, and its state on disk.

The learner brings a model and an ``update``; the session drives Accelerate, counts the steps, stores its state every
``save_steps`` steps and when a signal asks to stop, and goes on from there the next time.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from transformers import get_scheduler

from .. import files, interrupt, progress
from ..errors import UserError
from ..models import device, quiet
from ..types import Policy
from .optimizer import FILE, adamw, carry_on

log = logging.getLogger("raftune")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every learner lets its user choose. ``batch_size``: outputs of an optimiser step; ``optimizer``: AdamW's
    moments start anew each round, or are carried on; ``optimizer_bits``: of each moment; ``save_steps``: steps between
    two states on disk."""

    learning_rate: float = 2e-5
    batch_size: int = 8
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    optimizer: Literal["reset", "carry"] = "reset"
    optimizer_bits: Literal[32, 8] = 32
    gradient_checkpointing: bool = False
    save_steps: int = 100


class Session:
    """One tuning: the model being trained, where it stands, and its state on disk.

    ``total``: optimiser steps. ``identity``: changes with everything that shapes the result; the state of another
    tuning is not taken up. ``mixed``: forward passes belong into ``autocast()``, which makes them bfloat16.
    """

    def __init__(
        self, options: Options, model: Any, policy: Policy, out: Path, total: int, identity: str, mixed: bool
    ) -> None:
        self.options, self.total, self.identity, self.folder = options, total, identity, out.parent
        self.state = out.parent / f"{out.name}.tuning"
        where = device().type
        # Autocast is ours: Accelerate's also makes a float32 copy of what the model returns, which are the logits
        self.accelerator = Accelerator(mixed_precision="no", cpu=where == "cpu")
        self.autocast = partial(torch.autocast, where, torch.bfloat16, enabled=mixed)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        self.accelerator.register_save_state_pre_hook(partial(_leave_out, self.frozen))
        rate, decay = options.learning_rate, options.weight_decay
        optimizer = adamw(self.parameters, rate, decay, options.optimizer_bits)
        before = Path(str(policy)).parent / FILE
        if options.optimizer == "carry" and before.exists():
            carry_on(optimizer, before, rate)
        scheduler = get_scheduler(options.schedule, optimizer, num_warmup_steps=0, num_training_steps=total)
        self.prepared, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, scheduler)
        self.step, self.loss, self.resumed = 0, 0.0, False
        self._restore()

    @property
    def model(self) -> Any:
        return self.accelerator.unwrap_model(self.prepared)

    def run(self, update: Callable[[int], float]) -> None:
        """``update(number)``, for each step from 0 that is not done: put gradients on the model, return the loss."""
        self.prepared.train()
        with progress.bar("tune", self.total) as advance:
            advance(self.step)
            while self.step < self.total:
                self._apply(update(self.step))
                self.step += 1
                advance(1)
                if interrupt.requested() and self.step < self.total:
                    self.store()
                    interrupt.check()
                if self.step % self.options.save_steps == 0 and self.step < self.total:
                    self.store()

    def _apply(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(f"tune: the loss is {loss} at step {self.step + 1}; lower tune.learning_rate")
        self.accelerator.clip_grad_norm_(self.parameters, self.options.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.loss = loss

    def backward(self, loss: torch.Tensor) -> float:
        """Add the gradients of a part of the step's loss; its value."""
        self.accelerator.backward(loss)
        return float(loss.detach())

    def store(self) -> None:
        """Save weights, optimiser, schedule and random state, whole or not at all."""
        with files.replacing_folder(self.state) as part, quiet():
            self.accelerator.save_state(str(part))
            files.write_json(part / "step.json", {"step": self.step, "loss": self.loss, "of": self.identity})

    def _restore(self) -> None:
        where = self.state / "step.json"
        if not where.exists():
            return
        saved = files.read_json(where)
        if saved["of"] != self.identity:
            log.warning("tune: %s is the state of another tuning; starting from the first step", self.state)
            return
        with quiet():
            self.accelerator.load_state(str(self.state), strict=not self.frozen)
        self.step, self.loss, self.resumed = saved["step"], saved["loss"], True

    def keep_moments(self) -> None:
        """Where the next round carries the optimiser on, its moments lie beside the checkpoint."""
        if self.options.optimizer == "carry":
            torch.save(self.optimizer.state_dict(), self.folder / FILE)

    def clean(self) -> None:
        """The checkpoint is written: the state is no longer needed."""
        shutil.rmtree(self.state, ignore_errors=True)

    def release(self) -> None:
        """Let the moments go now: what Accelerate and the schedule hold in cycles waits for the garbage collector."""
        self.optimizer.state.clear()


def _leave_out(frozen: set[str], models: list[Any], weights: list[dict[str, Any]], folder: str) -> None:
    """Of what is about to be saved: what is not trained lies where the policy says."""
    for state in weights:
        for name in frozen & state.keys():
            del state[name]
