"""A monitor for companion.yaml: is the answer about what this person wrote?

The cosine of the sentence embeddings (all-MiniLM-L6-v2, mean pooled) of the person's last message and of the answer,
-1 … 1. It shares nothing with the heuristics that rank, and it only watches: where the reward rises while it falls,
answers have become kind words to anybody. It is no judge of kindness either, and repeating the message pleases it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModel

from raftune import assets
from raftune.models import Tokenizer, device, load_model, load_tokenizer
from raftune.resident import resident

MODEL = "all-minilm-l6-v2"
BATCH = 64


def relevance(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
    """One cosine for each pair of a prompt (its last message) and a completion; None for one without a word."""
    folder = str(assets.fetch(MODEL))
    model, tokenizer = resident.get(
        folder, "embed", lambda: (load_model(folder, torch.float32, AutoModel), load_tokenizer(folder))
    )
    asked = embed(model, tokenizer, [last_text(prompt) for prompt in prompts])
    texts = [last_text(completion) for completion in completions]
    cosines = (asked * embed(model, tokenizer, texts)).sum(-1).tolist()
    return [cosine if text.strip() else None for cosine, text in zip(cosines, texts, strict=True)]


def last_text(turns: Any) -> str:
    """A text, or the last message of a chat."""
    return turns if isinstance(turns, str) else str(turns[-1]["content"])


@torch.inference_mode()
def embed(model: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Unit vectors, one a text: the mean of its tokens' last hidden states, as this model was trained."""
    vectors = []
    limit = min(256, model.config.max_position_embeddings)
    for start in range(0, len(texts), BATCH):
        some = list(texts[start : start + BATCH])
        batch = tokenizer(some, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device())
        hidden_BTD = model(**batch).last_hidden_state
        mask_BT1 = batch["attention_mask"].unsqueeze(-1).to(hidden_BTD)
        mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        vectors.append(torch.nn.functional.normalize(mean_BD, dim=-1).cpu())
    return torch.cat(vectors)
