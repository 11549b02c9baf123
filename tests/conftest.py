"""Tiny random models built here: no network, no GPU."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAFTUNE_DTYPE", "float32")  # exact comparisons; bfloat16 is tested on its own

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from raftune.resident import resident
from raftune.types import Candidate, Prompt, Scored, Text

settings.register_profile("any machine", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("any machine")

VOCABULARY = 260  # 256 bytes and four special tokens
EOS = 257

COMMON = {"vocab_size": VOCABULARY, "eos_token_id": EOS, "bos_token_id": 256, "pad_token_id": 258}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2": {**SMALL, "num_key_value_heads": 2},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {**SMALL},
    "gemma": {**SMALL, "num_key_value_heads": 1, "head_dim": 8},
    "gemma3_text": {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 128},
    "mistral": {**SMALL, "num_key_value_heads": 2, "sliding_window": None},
    "phi3": {**SMALL, "num_key_value_heads": 2},
    # These cannot share a prefix
    "gemma2": {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 128},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
SHARING = [family for family in FAMILIES if family not in {"gemma2", "bloom", "mamba"}]
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def build_tokenizer() -> Any:
    """One token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = CHAT
    return fast


def build_model(folder: Path, family: str = "llama", seed: int = 0, scale: float = 3.0, **changes: Any) -> Path:
    """A random model that is sure enough of itself for greedy decoding to have no ties."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``model_of(family, **config changes)`` → a model folder, built once."""
    built: dict[str, Path] = {}

    def get(family: str = "llama", **changes: Any) -> Path:  # `scale` is build_model's
        key = repr((family, sorted(changes.items())))
        if key not in built:
            built[key] = build_model(tmp_path_factory.mktemp(family), family, **changes)
        return built[key]

    return get


@pytest.fixture(scope="session")
def pipeline_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``pipeline_of(kind, **options)`` → the folder of a tiny diffusion pipeline, built once; read, never write it."""
    from tiny_pipelines import build_pipeline

    built: dict[str, Path] = {}

    def get(kind: str = "sd", **options: Any) -> Path:
        key = repr((kind, sorted(options.items())))
        if key not in built:
            built[key] = build_pipeline(tmp_path_factory.mktemp(kind), kind, **options)
        return built[key]

    return get


@pytest.fixture(scope="session")
def tiny(model_of: Callable[..., Path]) -> Path:
    return model_of("llama")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No model stays in memory from one test to the next."""
    yield
    resident.free()


def prompts_of(*texts: str, **columns: Any) -> list[Prompt]:
    return [Prompt(f"p{i}", text, columns) for i, text in enumerate(texts)]


def candidate(prompt: str = "p0", index: int = 0, text: str = "", **fields: Any) -> Candidate:
    return Candidate(Prompt(prompt, f"text of {prompt}"), index, Text(text, **fields))


def scored(prompt: str, index: int, reward: float | None) -> Scored:
    return Scored(candidate(prompt, index), reward, {"r": reward})


warnings.filterwarnings("ignore", message="builtin type .* has no __module__ attribute")
