"""An image classifier as the reward: does it see in the picture what the prompt's label says?

Shapes: B pictures, C classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..errors import UserError
from ..models import load_image_processor, load_model, quiet
from ..resident import resident
from ..types import Candidate
from .clip import encoder_dtype
from .pictures import in_batches

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageClassifierReward:
    """The log-probability (nats, 0 at best) of the class that the prompt's column ``column`` names.

    ``correct``: instead 1.0 where that class is the most probable one, else 0.0; the mean is an accuracy, for judging.
    """

    policy: str
    name: str = "image-classifier"
    column: str = "label"
    correct: bool = False

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        model, processor = resident.get(self.policy, "image-classifier", lambda: _load(self.policy))
        classes = {str(label): int(number) for label, number in (model.config.label2id or {}).items()}
        for candidate in candidates:
            self._class(candidate, classes)

        @torch.inference_mode()
        def score(some: Sequence[Candidate], images: Sequence[Image]) -> list[float]:
            with quiet():
                inputs = processor(images=list(images), return_tensors="pt")
            logits_BC = model(**inputs.to(model.device, model.dtype)).logits.float().cpu()
            wanted_B = torch.tensor([self._class(candidate, classes) for candidate in some])
            if self.correct:
                return (logits_BC.argmax(-1) == wanted_B).float().tolist()
            return logits_BC.log_softmax(-1).gather(-1, wanted_B[:, None])[:, 0].tolist()

        return in_batches(self.name, candidates, score, "classify")

    def _class(self, candidate: Candidate, classes: dict[str, int]) -> int:
        """The number of the prompt's label."""
        prompt = candidate.prompt
        label = prompt.columns.get(self.column)
        if label is None:
            has = ", ".join(sorted(prompt.columns)) or "none"
            raise UserError(f"reward {self.name!r}: prompt {prompt.id!r} has no column {self.column!r}; it has {has}")
        if str(label) not in classes:
            near = difflib.get_close_matches(str(label), classes, n=3, cutoff=0.4) or list(classes)[:3]
            raise UserError(
                f"reward {self.name!r}: prompt {prompt.id!r} has the label {str(label)!r}, which is none of the "
                f"model's {len(classes)} classes; closest: {', '.join(map(repr, near))}"
            )
        return classes[str(label)]


def _load(policy: str) -> tuple[PreTrainedModel, Any]:
    return load_model(policy, encoder_dtype(), AutoModelForImageClassification), load_image_processor(policy)
