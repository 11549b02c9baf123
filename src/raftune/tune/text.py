"""The text learner: supervised fine-tuning on the chosen outputs (paper, algorithm 1, the last step of a round)."""

from __future__ import annotations

import logging
import math
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import get_scheduler

from .. import files, interrupt, progress
from ..batches import Pair, collate, output_logprobs, sizes, within_budget
from ..errors import UserError
from ..models import Tokenizer, adapter_base, compute_dtype, device, load_model, load_tokenizer, locate, quiet, resident
from ..tokens import encode_prompt, output_ids
from ..types import Policy, Scored, digest, seed_of

log = logging.getLogger("raftune")


@dataclass(frozen=True)
class Lora:
    """A peft LoRA adapter; ``target_modules`` None: all linear layers but the head."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TextLearner:
    """Fine-tunes all parameters, or a LoRA adapter, on the drawn token ids: the loss is the mean negative
    log-likelihood of the output tokens of an optimiser step; the prompt carries no loss.

    ``batch_size`` outputs make an optimiser step, whatever the memory: within it as many go through the model at once
    as ``batch_tokens`` padded tokens allow, the rest by gradient accumulation. The optimiser (AdamW) and the schedule
    start anew each round, as in the paper; ``optimizer="carry"`` keeps the moments. Every ``save_steps`` steps, and
    when a signal asks to stop, the state is saved beside the checkpoint, and a resumed tuning goes on from there.
    """

    learning_rate: float = 2e-5
    epochs: int = 1
    batch_size: int = 8
    batch_tokens: int = 4096
    schedule: Literal["linear", "constant"] = "linear"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    optimizer: Literal["reset", "carry"] = "reset"
    gradient_checkpointing: bool = False
    save_steps: int = 100
    lora: Lora | None = None

    def tune(self, policy: Policy, chosen: Sequence[Scored], out: Path, seed: tuple[object, ...]) -> Policy:
        """Write the tuned checkpoint to ``out``: a model folder, or an adapter folder with ``lora``."""
        if not chosen:
            raise UserError("tune: nothing to learn from")
        start = time.perf_counter()
        resident.free()
        set_seed(seed_of("tune", *seed) % 2**32)  # LoRA's initial weights and dropout draw from the global generator
        tokenizer = load_tokenizer(policy)
        pairs = [
            (encode_prompt(tokenizer, s.candidate.prompt), output_ids(tokenizer, s.candidate.output)) for s in chosen
        ]
        pairs = [(prompt, output) for prompt, output in pairs if output]
        if not pairs:
            raise UserError("tune: every chosen output is empty")
        session = Session(self, policy, pairs, out, seed)
        session.run()
        with files.replacing_folder(out) as part:
            self._save(session, tokenizer, part)
            seconds = time.perf_counter() - start
            tokens = sum(len(prompt) + len(output) for prompt, output in pairs) * self.epochs
            figures = {"loss": session.loss, "steps": session.total, "tokens": tokens}
            if not session.resumed:  # a tuning that was cut in two has no rate of its own
                figures["tokens_per_s"] = tokens / seconds
            files.write_json(part / files.FIGURES, figures)
        session.clean()
        return out

    def _save(self, session: Session, tokenizer: Tokenizer, part: Path) -> None:
        with quiet():
            session.model.save_pretrained(part)
            tokenizer.save_pretrained(part)
        if self.optimizer == "carry":
            torch.save(session.optimizer.state_dict(), session.folder / "optimizer.pt")


class Session:
    """One tuning: the model being trained, where it stands, and its state on disk."""

    def __init__(
        self, learner: TextLearner, policy: Policy, pairs: Sequence[Pair], out: Path, seed: tuple[object, ...]
    ) -> None:
        folder, name = out.parent, out.name
        self.learner, self.pairs, self.folder, self.seed = learner, pairs, folder, seed
        self.policy = policy
        self.state = folder / f"{name}.tuning"
        mixed = compute_dtype(device()) == torch.bfloat16
        self.accelerator = Accelerator(mixed_precision="bf16" if mixed else "no", cpu=device().type == "cpu")
        model = _trainable(policy, learner)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=learner.learning_rate, weight_decay=learner.weight_decay, fused=device().type != "mps"
        )
        before = Path(str(policy)).parent / "optimizer.pt"
        if learner.optimizer == "carry" and before.exists():
            optimizer.load_state_dict(torch.load(before, weights_only=True))
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] = learner.learning_rate
        self.total = learner.epochs * -(-len(pairs) // learner.batch_size)
        scheduler = get_scheduler(learner.schedule, optimizer, num_warmup_steps=0, num_training_steps=self.total)
        self.prepared, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, scheduler)
        self.parameters = parameters
        self.step, self.loss, self.resumed = 0, 0.0, False
        self._restore()

    @property
    def model(self) -> Any:
        return self.accelerator.unwrap_model(self.prepared)

    def steps(self) -> Iterator[list[Pair]]:
        """The outputs of each optimiser step: of like length, in an order that depends on the address alone."""
        for epoch in range(self.learner.epochs):
            order = list(range(len(self.pairs)))
            shuffle = random.Random(seed_of("batches", *self.seed, epoch))
            shuffle.shuffle(order)
            order.sort(key=lambda i: sum(map(len, self.pairs[i])))
            size = self.learner.batch_size
            groups = [order[at : at + size] for at in range(0, len(order), size)]
            shuffle.shuffle(groups)
            yield from ([self.pairs[i] for i in group] for group in groups)

    def run(self) -> None:
        self.prepared.train()
        with progress.bar("tune", self.total) as advance:
            advance(self.step)
            for number, pairs in enumerate(self.steps(), start=1):
                if number <= self.step:
                    continue
                self.loss = self._update(pairs)
                self.step = number
                advance(1)
                if interrupt.requested() and number < self.total:
                    self.store()
                    interrupt.check()
                if number % self.learner.save_steps == 0 and number < self.total:
                    self.store()

    def _update(self, pairs: Sequence[Pair]) -> float:
        """One optimiser step; the mean negative log-likelihood per output token before it."""
        tokens = sum(len(output) for _, output in pairs)
        loss = 0.0
        for group in within_budget(pairs, sizes, self.learner.batch_tokens):
            part = -output_logprobs(self.prepared, collate(group, self.accelerator.device)).sum() / tokens
            self.accelerator.backward(part)
            loss += float(part.detach())
        if not math.isfinite(loss):
            raise UserError(f"tune: the loss is {loss} at step {self.step + 1}; lower tune.learning_rate")
        self.accelerator.clip_grad_norm_(self.parameters, self.learner.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return loss

    def store(self) -> None:
        """Save weights, optimiser, schedule and random state, whole or not at all."""
        with files.replacing_folder(self.state) as part, quiet():
            self.accelerator.save_state(str(part))
            files.write_json(part / "step.json", {"step": self.step, "loss": self.loss, "of": self._identity})

    @property
    def _identity(self) -> str:
        return digest(asdict(self.learner), str(self.policy), self.pairs, self.seed).hex()

    def _restore(self) -> None:
        where = self.state / "step.json"
        if not where.exists():
            return
        saved = files.read_json(where)
        if saved["of"] != self._identity:
            log.warning("tune: %s is the state of another tuning; starting from the first step", self.state)
            return
        with quiet():
            self.accelerator.load_state(str(self.state))
        self.step, self.loss, self.resumed = saved["step"], saved["loss"], True

    def clean(self) -> None:
        """The checkpoint is written: the state is no longer needed."""
        shutil.rmtree(self.state, ignore_errors=True)


def _trainable(policy: Policy, learner: TextLearner) -> Any:
    """All parameters in float32; with LoRA the frozen base in the compute precision, the adapter in float32."""
    if learner.lora is not None:
        return _adapter(policy, learner, learner.lora)
    model = load_model(policy, torch.float32)
    for parameter in model.parameters():
        # Loading maps the file; training in place would copy it page by page, at the first step, which is slower
        parameter.data = parameter.data.clone()
    if learner.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model


def _adapter(policy: Policy, learner: TextLearner, lora: Lora) -> Any:
    """The policy's own adapter to go on with, or a new one on the policy as base."""
    from peft import LoraConfig, PeftModel, get_peft_model

    folder = locate(policy)
    base = adapter_base(folder)
    below = load_model(base or policy, compute_dtype(device()))
    if learner.gradient_checkpointing:
        below.activation_checkpointing_enable()
        below.enable_input_require_grads()  # else nothing below the first adapter asks for a gradient
    if base is not None:
        model = PeftModel.from_pretrained(below, folder, is_trainable=True)
        had = model.peft_config["default"]
        if (getattr(had, "r", None), getattr(had, "lora_alpha", None)) != (lora.r, lora.alpha):
            raise UserError(
                f"tune.lora: {folder} is an adapter with r={getattr(had, 'r', None)}, alpha="
                f"{getattr(had, 'lora_alpha', None)}; set these, or start from its base {base}"
            )
        return model
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) if lora.target_modules else "all-linear",
    )
    try:
        model = get_peft_model(below, config)
    except ValueError as error:
        raise UserError(f"tune.lora: {str(error).splitlines()[0]}") from error
    if Path(folder).is_dir():  # the adapter opens from any working directory
        model.peft_config["default"].base_model_name_or_path = str(Path(folder).resolve())
    return model
