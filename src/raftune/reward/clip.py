"""CLIP as a reward: how well a picture and its prompt fit (CLIP score), and PickScore, which is a CLIP model too.

Shapes: B pictures or texts, D width of the joint embedding.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModel, PreTrainedModel

from ..errors import UserError
from ..models import Tokenizer, compute_dtype, device, load_image_processor, load_model, load_tokenizer, quiet
from ..resident import resident
from ..types import Candidate
from .pictures import in_batches, text_of

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("raftune")

PICKSCORE = "yuvalkirstain/PickScore_v1"
PICKSCORE_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # what its model card uses


@dataclass(frozen=True)
class ClipReward:
    """``scale`` × cosine of the embeddings of picture and prompt; the prompt's own content is the text.

    CLIP score: scale 100, so -100 … 100 and about 15 … 35 in practice, as torchmetrics but not clipped at 0 (Hessel et
    al. 2021, arXiv 2104.08718, have 2.5 × max(cosine, 0): the same order). PickScore (Kirstain et al. 2023, arXiv
    2305.01569): scale None, the model's own ``exp(logit_scale)``.

    A text longer than the model's context is cut, and the log says how many were. ``processor`` is used for a model
    that comes without one. One model is in memory at a time: rewards with the same CLIP model share it, those with
    different ones load theirs anew for every shard.
    """

    policy: str
    name: str = "clip"
    scale: float | None = 100.0
    processor: str | None = None

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        texts = [text_of(self.name, candidate) for candidate in candidates]
        encoder = clip(self.policy, self.processor)
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}  # K pictures share a prompt
        texts_ND = encoder.texts(self.name, list(place)) if place else torch.empty(0)
        scale = encoder.scale if self.scale is None else self.scale

        def score(some: Sequence[Candidate], images: Sequence[Image]) -> list[float]:
            rows = [place[text_of(self.name, candidate)] for candidate in some]
            return (scale * (encoder.images(images) * texts_ND[rows]).sum(-1)).tolist()

        return in_batches(self.name, candidates, score, "clip")


@dataclass(frozen=True, eq=False)
class Encoder:
    """A CLIP-like model (CLIP, SigLIP …) with what prepares its pictures and texts. Embeddings are float32, L2-norm 1,
    on the CPU."""

    model: PreTrainedModel
    processor: Any
    tokenizer: Tokenizer

    @torch.inference_mode()
    def images(self, images: Sequence[Image]) -> torch.Tensor:
        """``[B, D]``."""
        with quiet():
            inputs = self.processor(images=list(images), return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        return _normalised(self.model.get_image_features(**inputs).pooler_output)  # type: ignore[operator]

    @torch.inference_mode()
    def texts(self, name: str, texts: Sequence[str], size: int = 64) -> torch.Tensor:
        """``[B, D]``; ``name`` is the reward's, for the log."""
        if len(self.tokenizer) < self.model.config.get_text_config().vocab_size // 2:
            raise UserError(f"reward {name!r}: the model has no tokenizer of its own; add the tokenizer's files to it")
        longest = self.model.config.get_text_config().max_position_embeddings
        limit = min(self.tokenizer.model_max_length, longest)
        with quiet():  # it warns of long ones, which are counted here
            cut = sum(len(ids) > limit for ids in self.tokenizer(list(texts))["input_ids"])
        if cut:
            log.warning("reward %r: %d prompts over %d tokens cut to that length", name, cut, limit)
        # SigLIP was trained on texts padded to its whole context, the padding unmasked
        siglip = self.model.config.model_type.startswith("siglip")
        found = []
        for start in range(0, len(texts), size):
            inputs = self.tokenizer(
                list(texts[start : start + size]),
                padding="max_length" if siglip else True,
                return_attention_mask=not siglip,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            ).to(self.model.device)
            found.append(_normalised(self.model.get_text_features(**inputs).pooler_output))  # type: ignore[operator]
        return torch.cat(found)

    @property
    def scale(self) -> float:
        """``exp(logit_scale)``, learned with the model: 100 for OpenAI's."""
        return self.model.logit_scale.float().exp().item()  # type: ignore[union-attr]


def _normalised(features_BD: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features_BD.float(), dim=-1).cpu()


def encoder_dtype() -> torch.dtype:
    """float32: in bfloat16 the score of a picture is off by a seventh of how far pictures lie apart (docs/log.md).

    ``RAFTUNE_DTYPE`` overrules, as everywhere.
    """
    return compute_dtype(device()) if os.environ.get("RAFTUNE_DTYPE") else torch.float32


def clip(policy: str, processor: str | None = None) -> Encoder:
    """The model at ``policy``, resident. Its pictures and texts are prepared as ``processor`` does if it has none."""
    return resident.get(policy, f"clip {processor}", lambda: _load(policy, processor))


def _load(policy: str, processor: str | None) -> Encoder:
    model = load_model(policy, encoder_dtype(), AutoModel)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise UserError(f"model: {policy} is a {type(model).__name__}, which has no joint embedding; give a CLIP model")
    try:
        return Encoder(model, load_image_processor(policy), load_tokenizer(policy))
    except UserError:
        if processor is None:
            raise
    return Encoder(model, load_image_processor(processor), load_tokenizer(processor))
