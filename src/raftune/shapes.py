"""The sizes of a language model, from its configuration: no weights are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from .bounds import Shape
from .models import adapter_base, compute_dtype, device, load_config, loading, locate, of_text
from .types import Policy


def shape_of(policy: Policy, width: int | None = None) -> Shape:
    """``width``: bytes a number; by default of the precision that is computed in here."""
    folder = of_text(policy)
    base = adapter_base(folder) or folder
    config = load_config(base).get_text_config()
    model = _empty(base)
    heads = getattr(config, "num_attention_heads", None) or 1
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        parameters=model.num_parameters(),
        layers=getattr(config, "num_hidden_layers", 1),
        hidden=config.hidden_size,
        inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        heads=heads,
        query=heads * head,
        key=(getattr(config, "num_key_value_heads", None) or heads) * head,
        vocabulary=config.vocab_size,
        stored=weights_in(base) or 2 * model.num_parameters(),
        width=width or compute_dtype(device()).itemsize,
    )


def _empty(folder: str) -> Any:
    """The model without memory."""
    config = load_config(folder)
    with torch.device("meta"):
        return loading(folder, lambda: AutoModelForCausalLM.from_config(config))


def weights_in(place: str) -> int:
    """Bytes of the weights' files; 0 where they are not here."""
    folder = Path(locate(place))
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors")) if folder.is_dir() else 0


def adapter_of(policy: Policy, r: int, targets: tuple[str, ...] | None) -> int:
    """Parameters of a LoRA of rank ``r`` on the linear layers (but the head), or on those of these names."""
    model = _empty(adapter_base(of_text(policy)) or of_text(policy))
    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear, type(None))
    found = 0
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        linear = isinstance(module, kinds[0]) or type(module).__name__ == "Conv1D"
        if linear and module is not head and (targets is None or last in targets):
            found += r * sum(module.weight.shape)
    return found


def resident_bytes() -> int:
    """What this process holds now."""
    import psutil

    return psutil.Process(os.getpid()).memory_info().rss
