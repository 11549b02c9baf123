"""Checkpoints in and out of memory: where they lie, on which device, in which precision; one at a time.

A checkpoint is a transformers folder or hub id, a PEFT adapter folder (its base is loaded below it), or ``asset:NAME``.
Policies that are LoRA adapters of one base share it: it is loaded once, and they stand beside its weights.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from . import assets
from .errors import UserError
from .types import Policy

T = TypeVar("T")
# transformers, PEFT, diffusers, a LoRA of diffusers
DIFFUSERS = ("model_index.json", "pytorch_lora_weights.safetensors")
CONFIGS = ("config.json", "adapter_config.json", *DIFFUSERS)
SHORT = 256  # tokens: the scores that 4,096 tokens keep for the backward pass are then 8 MB a head and layer, at most
Tokenizer = Any  # PreTrainedTokenizerBase, whose own annotations do not tell ids from text


def device() -> torch.device:
    """CUDA, else MPS, else CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@functools.cache
def glibc() -> ctypes.CDLL | None:
    """On CPU: the C allocator, told to keep the memory of freed tensors for the next ones; None where there is none.

    A fresh 100 MB tensor costs 20 to 140 ms of page faults, ten to forty times what filling it does, and a tuning step
    makes several (docs/log.md). ``RAFTUNE_KEEP_MEMORY=0`` leaves the allocator as it is.
    """
    if device().type != "cpu" or os.environ.get("RAFTUNE_KEEP_MEMORY") == "0":
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-4, 0)  # M_MMAP_MAX: no allocation in a mapping of its own
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink by itself
    except (OSError, AttributeError):  # another C library
        return None
    return library


def trim() -> None:
    """Hand freed memory back: what one stage left does not fit the next."""
    if (library := glibc()) is not None:
        library.malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compute_dtype(where: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32. ``RAFTUNE_DTYPE`` (float32, bfloat16) overrules."""
    if wanted := os.environ.get("RAFTUNE_DTYPE"):
        if wanted not in {"float32", "bfloat16"}:
            raise UserError(f"RAFTUNE_DTYPE: {wanted!r} is neither float32 nor bfloat16")
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if where.type == "cpu":
        has = torch.cpu.get_capabilities()
        return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32
    if where.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no chatter from the libraries: ours show what is going on."""
    shown, level = transformers.utils.logging.is_progress_bar_enabled(), transformers.utils.logging.get_verbosity()
    accelerate = logging.getLogger("accelerate")  # warns of tied weights at every save, which is as it should be
    accelerate_level = accelerate.level
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    accelerate.setLevel(logging.ERROR)
    try:
        yield
    finally:
        accelerate.setLevel(accelerate_level)
        transformers.utils.logging.set_verbosity(level)
        if shown:
            transformers.utils.logging.enable_progress_bar()


def locate(policy: Policy) -> str:
    """A folder or hub id that ``from_pretrained`` takes. UserError if it is a folder without a model."""
    name = str(policy)
    if name.startswith(assets.SCHEME):
        return str(assets.fetch(name.removeprefix(assets.SCHEME)))
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise UserError(f"model: {name} is not a folder; give a model folder, a hub id or asset:NAME")
        return name
    weights = [*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]
    if not any((folder / config).exists() for config in CONFIGS):
        raise UserError(f"model: {name} has no config.json and no model_index.json; is it a model folder?")
    if not weights:
        raise UserError(f"model: {name} has a config but no weights (*.safetensors)")
    return name


def adapter_base(folder: str) -> str | None:
    """The base that a PEFT adapter folder was made for; None if it is no adapter."""
    config = Path(folder) / "adapter_config.json"
    if not config.exists():
        return None
    return json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]


def of_text(policy: Policy) -> str:
    """Where a model that is no diffusion pipeline lies."""
    folder = locate(policy)
    if any((Path(folder) / name).exists() for name in DIFFUSERS):
        raise UserError(f"model: {folder} makes pictures; set modality: image, or name a language model")
    return folder


def load_tokenizer(policy: Policy) -> Tokenizer:
    """The policy's tokenizer; an adapter folder without one uses its base's."""
    folder = of_text(policy)
    base = adapter_base(folder)
    if base is not None and not (Path(folder) / "tokenizer_config.json").exists():
        return load_tokenizer(base)
    return loading(folder, lambda: AutoTokenizer.from_pretrained(folder))


def load_image_processor(policy: Policy) -> Any:
    """What turns PIL pictures into the model's pixels. By Pillow, so that they are the same with and without
    torchvision, and as CLIP's own were made."""
    folder = locate(policy)
    return loading(folder, lambda: AutoImageProcessor.from_pretrained(folder, backend="pil"))


def context_length(tokenizer: Tokenizer, config: Any) -> int:
    """How many tokens a model takes, as far as it and its tokenizer tell."""
    return min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 1 << 30)


def load_config(policy: Policy) -> Any:
    """The configuration alone."""
    folder = of_text(policy)
    return loading(folder, lambda: AutoConfig.from_pretrained(folder))


def load_generation_config(policy: Policy) -> GenerationConfig:
    """What the model says of generating, its end-of-sequence tokens above all; an adapter's is its base's."""
    folder = of_text(policy)
    base = adapter_base(folder)
    if base is not None:
        return load_generation_config(base)
    try:
        with quiet():
            return GenerationConfig.from_pretrained(folder)
    except OSError:  # it has no file of its own
        return GenerationConfig.from_model_config(load_config(folder))


def load_model(
    policy: Policy, dtype: torch.dtype, model_class: Any = AutoModelForCausalLM, **options: Any
) -> PreTrainedModel:
    """The policy on the device, in eval mode; an adapter is merged into its base. ``options``: of from_pretrained."""
    glibc()
    folder = of_text(policy)
    base = adapter_base(folder)
    if base is None:
        model = loading(folder, lambda: model_class.from_pretrained(folder, dtype=dtype, **options))
    else:
        from peft import PeftModel

        below = load_model(base, dtype, model_class, **options)
        model = loading(folder, lambda: PeftModel.from_pretrained(below, folder).merge_and_unload())
    return model.to(device()).eval()


def merge(policy: Policy, out: Path) -> None:
    """Write a policy into a folder as one model with its tokenizer, an adapter merged into its base. In float32: a
    lower precision would round a small change away."""
    model, tokenizer = load_model(policy, torch.float32), load_tokenizer(policy)
    with quiet():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def attend(model: PreTrainedModel, longest: int) -> None:
    """Ready ``model`` to read sequences of so many tokens at most.

    On CPU torch's fused attention takes 1.5 to 6 times as long in bfloat16 as plain matmuls do (docs/log.md). These
    keep every score, so they are for what is short.
    """
    plain = model.device.type == "cpu" and compute_dtype(model.device) == torch.bfloat16 and longest <= SHORT
    for choice in ("eager", "sdpa") if plain else ("sdpa", "eager"):
        with contextlib.suppress(ValueError, ImportError):  # an architecture that has only one of them
            model.set_attn_implementation(choice)
            break


def loading(folder: str, load: Callable[[], T]) -> T:
    """What ``load`` makes; UserError in one line where a library cannot."""
    try:
        with quiet():
            return load()
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model: {folder} does not load: {line}") from error
