"""Can this model's continuations share their prompt's cache? Tried on the model, not looked up in a list of names."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from .attention import NAME
from .decode import NEVER, Work, decode_shared
from .draw import Temper, uniforms

log = logging.getLogger("raftune")

_said: set[str] = set()
_verdicts: dict[tuple[type, str], str] = {}


def prepare(model: PreTrainedModel, length: int) -> bool:
    """Ready ``model`` for shared decoding of ``length`` tokens. False (said once, with the reason) if it cannot be."""
    if reason := unshareable(model, length):
        _say_once(f"{type(model).__name__}: {reason}; sampling with model.generate, which is slower")
        return False
    model.set_attn_implementation(NAME)
    return True


def _say_once(line: str) -> None:
    """A warning that comes once per process."""
    if line not in _said:
        _said.add(line)
        log.warning(line)


def unshareable(model: PreTrainedModel, length: int) -> str:
    """Why this model cannot share a prefix at this length; empty if it can.

    Not decided by a list of names: a small batch goes through the shared decoding once, and its log-probabilities must
    be those of the model's own forward pass.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    windowed = "sliding_attention" in kinds or (not kinds and getattr(config, "use_sliding_window", True))
    if window is not None and windowed and length > window:
        return f"{length} tokens are more than its sliding window of {window}"
    key = (type(model), model.config.to_json_string() + str(model.dtype))
    if key not in _verdicts:
        _verdicts[key] = _probe(model)
        restore(model)
    return _verdicts[key]


def _probe(model: PreTrainedModel) -> str:
    prompt_ids, owner, steps = [[5, 7, 3, 6], [4, 2]], [0, 0, 1], 3
    work = Work(prompt_ids, owner, uniforms([("probe", row) for row in range(len(owner))], steps))
    try:
        model.set_attn_implementation(NAME)
        drawn = decode_shared(model, work, Temper(), NEVER)
        restore(model)
        expected = [
            _forward_logprobs(model, prompt_ids[own], one.token_ids) for own, one in zip(owner, drawn, strict=True)
        ]
    except Exception as error:  # whatever a foreign architecture objects to
        return f"its attention cannot share a prefix ({type(error).__name__})"
    found = torch.tensor([one.logprobs for one in drawn])
    gap = float((found - torch.tensor(expected)).abs().max())
    allowed = 1e-3 if model.dtype == torch.float32 else 0.25
    return (
        ""
        if math.isfinite(gap) and gap < allowed
        else f"its log-probabilities differ by {gap:.2g} with a shared prefix"
    )


def restore(model: PreTrainedModel) -> None:
    """The attention that it was loaded with: what reads or tunes it next finds it as new."""
    try:
        model.set_attn_implementation("sdpa")
    except (ValueError, ImportError):
        model.set_attn_implementation("eager")


@torch.inference_mode()
def _forward_logprobs(model: PreTrainedModel, prompt_ids: Sequence[int], output: Sequence[int]) -> list[float]:
    ids = torch.tensor([[*prompt_ids, *output]], device=model.device)
    logprobs = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)[0, len(prompt_ids) - 1 : -1]
    return logprobs.gather(-1, ids[0, len(prompt_ids) :, None])[:, 0].tolist()
