"""A sequence-classification model as the reward: a hub id or folder, with its own chat template."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from .. import progress
from ..batches import within_budget
from ..errors import UserError
from ..models import Tokenizer, compute_dtype, context_length, device, load_model, load_tokenizer
from ..resident import resident
from ..tokens import encode_answers
from ..types import Candidate

log = logging.getLogger("raftune")

BATCH_TOKENS = {"cpu": 4096, "mps": 16384, "cuda": 16384}  # where more tokens no longer make a batch cheaper per token


@dataclass(frozen=True)
class ClassifierReward:
    """One output (a Bradley-Terry reward model): its logit. Several classes: the log-probability of ``label``, or with
    ``decides`` 1 where it is the most probable class and else 0, whose mean is a rate.

    A chat goes through the model's own chat template with the answer as the last turn; a text is prompt and answer
    joined. An input longer than the model takes is not scored, and the log says how many were not.
    Equal inputs go through the model once. Batches are formed by length; ``batch_tokens`` bounds their padded tokens
    (None: the device decides). The head computes in float32 whatever the rest does.
    """

    policy: str
    name: str = "classifier"
    label: str | None = None
    batch_tokens: int | None = None
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
        inputs = encode_answers(tokenizer, [(one.prompt.content, one.output.text) for one in candidates])
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, ids in enumerate(inputs):
            if len(ids) <= limit:
                rows_of.setdefault(tuple(ids), []).append(row)
        if over := len(inputs) - sum(map(len, rows_of.values())):
            log.warning("reward %r: %d inputs over %d tokens not scored", self.name, over, limit)
        values: list[list[float] | None] = [None] * len(inputs)
        budget = self.batch_tokens or BATCH_TOKENS[model.device.type]
        with progress.bar("classify", len(rows_of)) as advance:
            for batch in within_budget(rows_of, lambda ids: (len(ids),), budget):
                for ids, value in zip(batch, _forward(model, batch), strict=True):
                    for row in rows_of[ids]:
                        values[row] = value
                advance(len(batch))
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
    model.config.get_text_config().use_cache = False  # keys and values that nobody reads again
    widen_head(model)
    return model, tokenizer


def widen_head(model: PreTrainedModel) -> None:
    """What turns hidden states into logits computes in float32.

    bfloat16 has 8 bits: logits of 8 to 16 lie on a grid of 1/16, and near-equal candidates of a prompt would tie. Of
    a model whose body is not told apart from its head nothing changes.
    """
    for part in model.children():
        if part is not model.base_model:
            part.float().register_forward_pre_hook(_widen)


def _widen(part: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.float() if torch.is_tensor(one) and one.is_floating_point() else one for one in inputs)


def _value(logits: list[float], column: int | None) -> float:
    """In float64: near a probability of 1, float32 has no more steps than bfloat16 had."""
    return logits[0] if column is None else float(torch.tensor(logits, dtype=torch.float64).log_softmax(-1)[column])


@torch.inference_mode()
def _forward(model: PreTrainedModel, inputs: Sequence[tuple[int, ...]]) -> list[list[float]]:
    padding = model.config.pad_token_id or 0
    ids_BT = pad_sequence([torch.tensor(ids) for ids in inputs], batch_first=True, padding_value=padding)
    lengths_B = torch.tensor([len(ids) for ids in inputs])
    mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
    return model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)).logits.float().tolist()
