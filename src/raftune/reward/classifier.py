"""A sequence-classification model as the reward: a hub id or folder, with its own chat template."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from .. import progress
from ..batches import within_budget
from ..errors import UserError
from ..models import Tokenizer, compute_dtype, context_length, device, load_model, load_tokenizer, resident
from ..tokens import encode_answered
from ..types import Candidate

log = logging.getLogger("raftune")


@dataclass(frozen=True)
class ClassifierReward:
    """One output (a Bradley-Terry reward model): its logit. Several classes: the log-probability of ``label``, or with
    ``decides`` 1 where it is the most probable class and else 0, whose mean is a rate.

    A chat goes through the model's own chat template with the answer as the last turn; a text is prompt and answer
    joined. An input longer than the model takes is not scored, and the log says how many were not.
    ``batch_tokens`` bounds the padded tokens of a batch; batches are formed by length.
    """

    policy: str
    name: str = "classifier"
    label: str | None = None
    batch_tokens: int = 16384
    decides: bool = False

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        model, _ = resident.get(self.policy, "classify", lambda: _load(self.policy))
        column = self._column(model)
        if self.decides and column is None:
            raise UserError(f"reward {self.name!r}: the model has one output and decides nothing; use classifier:")
        rows = self.logits(candidates)
        if self.decides:
            return [None if row is None else float(max(row) == row[column or 0]) for row in rows]
        return [None if row is None else _value(row, column) for row in rows]

    def logits(self, candidates: Sequence[Candidate]) -> list[list[float] | None]:
        """All outputs of the model, of each candidate; None where it is too long."""
        model, tokenizer = resident.get(self.policy, "classify", lambda: _load(self.policy))
        limit = context_length(tokenizer, model.config)
        inputs = [encode_answered(tokenizer, one.prompt.content, one.output.text) for one in candidates]
        fitting = [row for row, ids in enumerate(inputs) if len(ids) <= limit]
        if len(fitting) < len(inputs):
            log.warning("reward %r: %d inputs over %d tokens not scored", self.name, len(inputs) - len(fitting), limit)
        values: list[list[float] | None] = [None] * len(inputs)
        with progress.bar("classify", len(fitting)) as advance:
            for rows in within_budget(fitting, lambda row: (len(inputs[row]),), self.batch_tokens):
                for row, value in zip(rows, _forward(model, tokenizer, [inputs[r] for r in rows]), strict=True):
                    values[row] = value
                advance(len(rows))
        return values

    def _column(self, model: PreTrainedModel) -> int | None:
        if model.config.num_labels == 1:
            return None
        labels: dict[str, int] = {str(k): int(v) for k, v in (model.config.label2id or {}).items()}
        if self.label is None or self.label not in labels:
            raise UserError(
                f"reward {self.name!r}: the model has {len(labels)} classes; set `label` to one of {', '.join(labels)}"
            )
        return labels[self.label]


def _load(policy: str) -> tuple[PreTrainedModel, Tokenizer]:
    model = load_model(policy, compute_dtype(device()), AutoModelForSequenceClassification)
    tokenizer = load_tokenizer(policy)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Decoder-only classifiers read the last token that is not padding, and find it by this id
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "right"
    return model, tokenizer


def _value(logits: list[float], column: int | None) -> float:
    return logits[0] if column is None else float(torch.tensor(logits).log_softmax(-1)[column])


@torch.inference_mode()
def _forward(model: PreTrainedModel, tokenizer: Tokenizer, inputs: list[list[int]]) -> list[list[float]]:
    batch = tokenizer.pad({"input_ids": inputs}, return_tensors="pt").to(model.device)
    return model(**batch).logits.float().tolist()
