"""Reward models (paper, section 5.1; Bradley-Terry as in Ouyang et al. 2022) and classifiers, by TRL and transformers.

TRL's ``RewardTrainer`` is handed token ids, not texts: it would end plain texts with end-of-sequence, which whoever
scores with the model would have to know. Lengths are seen to before, so it drops nothing.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from .. import files, interrupt, progress
from ..errors import UserError
from ..models import Tokenizer, adapter_base, compute_dtype, device, load_model, locate, quiet
from ..resident import resident
from ..types import Policy, digest, seed_of

IDENTITY = "identity.json"
Row = dict[str, Any]  # chosen_ids and rejected_ids, or input_ids and labels: token ids, and the number of the class


@dataclass(frozen=True)
class RewardLearner:
    """Trains a sequence classifier on ``policy`` as base (its head is new where it has none of that size).

    Pairs: one output r, loss −log σ(r_chosen − r_rejected), plus ``center`` · (r_chosen + r_rejected)², which keeps
    rewards about zero (Eisenstein et al. 2023, arXiv 2312.09244, eq. 2); None: without. Labels: cross-entropy over
    ``classes``. ``batch_size`` rows of like length make a step; bf16 autocast over float32 weights where the device
    multiplies it. Every ``save_steps`` steps, and when a signal asks to stop, the state is saved.
    """

    learning_rate: float = 2e-5
    epochs: int = 1
    batch_size: int = 8
    center: float | None = None
    save_steps: int = 500

    def train(
        self,
        policy: Policy,
        tokenizer: Tokenizer,
        rows: Sequence[Row],
        classes: Sequence[str] | None,
        out: Path,
        state: Path,
        seed: tuple[object, ...],
    ) -> dict[str, float]:
        """Write the classifier and its tokenizer to the folder ``out``; the trainer's state lies in ``state`` until
        then. ``classes``: names of the labels; None: pairs. Returns loss (mean of the steps), steps and tokens."""
        if torch.cuda.device_count() > 1:
            raise UserError("reward-model: trains on one GPU; show it one with CUDA_VISIBLE_DEVICES=0")
        start = time.perf_counter()
        resident.free()
        number = seed_of("reward-model", *seed) % 2**32
        set_seed(number)  # the new head draws from the global generator
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        with quiet():
            model = _fresh(policy, tokenizer, classes)
            ordered = [rows[at] for at in self.order([_length(row) for row in rows], seed)]
            trainer = self._trainer(model, tokenizer, Dataset.from_list(ordered), classes, state, number)
            begun = _begun(state, digest(asdict(self), str(policy), ordered, classes, seed).hex())
            steps = math.ceil(len(ordered) / self.batch_size)
            with progress.bar("tune", steps) as advance:
                trainer.add_callback(_Watch(advance))
                result = trainer.train(resume_from_checkpoint=begun)
            interrupt.check()
            if not math.isfinite(result.training_loss):
                raise UserError("reward-model: the loss is not a number; lower --learning-rate")
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
        tokens = sum(map(_length, ordered))
        figures: dict[str, float] = {"steps": steps, "tokens": tokens}
        if begun is None:  # a training that was cut in two has no rate and no mean of its own
            figures |= {"loss": result.training_loss, "tokens_per_s": tokens / (time.perf_counter() - start)}
        return figures

    def order(self, lengths: Sequence[int], seed: tuple[object, ...]) -> list[int]:
        """The rows of all epochs, step after step, those of a step of like length; depends on the address alone.

        What an epoch leaves over when it is cut into steps comes at the very end.
        """
        whole: list[int] = []
        rest: list[int] = []
        for epoch in range(self.epochs):
            order = list(range(len(lengths)))
            shuffle = random.Random(seed_of("batches", *seed, epoch))
            shuffle.shuffle(order)
            over = len(order) % self.batch_size
            rest += order[len(order) - over :]
            order = sorted(order[: len(order) - over], key=lambda at: lengths[at])
            groups = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
            shuffle.shuffle(groups)
            whole += [at for group in groups for at in group]
        return whole + rest

    def _trainer(
        self,
        model: Any,
        tokenizer: Tokenizer,
        rows: Dataset,
        classes: Sequence[str] | None,
        state: Path,
        seed: int,
    ) -> Trainer:
        common: dict[str, Any] = {
            "output_dir": str(state),
            "learning_rate": self.learning_rate,
            "num_train_epochs": 1,  # the rows are there once an epoch, in their order
            "train_sampling_strategy": "sequential",
            "per_device_train_batch_size": self.batch_size,
            "bf16": compute_dtype(device()) == torch.bfloat16,
            "use_cpu": device().type == "cpu",
            "activation_checkpointing": False,
            "save_steps": self.save_steps,
            "save_total_limit": 1,
            "seed": seed,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_nan_inf_filter": False,
            "dataloader_pin_memory": device().type == "cuda",
        }
        if classes is None:
            settings = RewardConfig(**common, max_length=None, center_rewards_coefficient=self.center)
            trainer: Trainer = RewardTrainer(model, settings, train_dataset=rows, processing_class=tokenizer)
        else:
            collate = DataCollatorWithPadding(tokenizer)
            trainer = Trainer(
                model,
                TrainingArguments(**common),
                data_collator=collate,
                train_dataset=rows,
                processing_class=tokenizer,
            )
        trainer.remove_callback(PrinterCallback)
        return trainer


class _Watch(TrainerCallback):
    """Says how far the training is, and stops it with its state saved where a signal asks for it."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(1)
        if interrupt.requested():
            control.should_save = control.should_training_stop = True


def _fresh(policy: Policy, tokenizer: Tokenizer, classes: Sequence[str] | None) -> Any:
    """The base in float32 with a head of the right size, to be trained in place."""
    folder = locate(policy)
    if adapter_base(folder) is not None:
        raise UserError(f"--model {folder}: is an adapter; name a whole model (sft and tune write one with --full)")
    options: dict[str, Any] = {"num_labels": len(classes) if classes else 1, "ignore_mismatched_sizes": True}
    if classes:
        options["id2label"] = dict(enumerate(classes))
        options["label2id"] = {name: at for at, name in enumerate(classes)}
        options["problem_type"] = "single_label_classification"
    model = load_model(policy, torch.float32, AutoModelForSequenceClassification, **options)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # else training copies the mapped file page by page
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "right"
    return model


def _begun(state: Path, identity: str) -> str | None:
    """Where an earlier, interrupted session of the same training stopped."""
    where = state / IDENTITY
    if where.exists() and files.read_json(where) == identity:
        return get_last_checkpoint(str(state))
    state.mkdir(parents=True, exist_ok=True)
    files.write_json(where, identity)
    return None


def _length(row: Row) -> int:
    """Tokens of a row, both sides of a pair."""
    return sum(len(ids) for name, ids in row.items() if name != "labels")
