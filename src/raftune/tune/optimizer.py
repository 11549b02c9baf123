"""AdamW, its moments in 32 or 8 bits, anew or carried on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..models import device

FILE = "optimizer.pt"  # beside the checkpoint, where the next round carries the moments on
HERE = {"cpu", "cuda", "xpu"}  # where bitsandbytes updates 8-bit moments


def adamw(parameters: Sequence[torch.nn.Parameter], rate: float, decay: float, bits: int) -> torch.optim.Optimizer:
    """AdamW on these parameters. ``bits``: 32, 8 bytes a parameter for both moments; 8, a quarter of that, quantised in
    blocks of 256 (Dettmers et al., arXiv 2110.02861; tensors below 4096 values stay as they are).

    Raises UserError where 8 bits cannot be: the package is missing, or it cannot work on this device.
    """
    where = device().type
    if bits == 32:
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=where != "mps")
    if where not in HERE:
        raise UserError(f"tune.optimizer_bits: 8 bits do not run on {where}; use 32")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("tune.optimizer_bits: 8 needs the package bitsandbytes; pip install 'raftune[adamw-8bit]'")
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(parameters, lr=rate, weight_decay=decay)


def carry_on(optimizer: torch.optim.Optimizer, file: Path, rate: float) -> None:
    """Go on with the moments in ``file``. UserError if they are of another optimiser or of other parameters."""
    saved: dict[str, Any] = torch.load(file, weights_only=True)
    fresh = optimizer.state_dict()
    sizes = [[len(group["params"]) for group in one["param_groups"]] for one in (saved, fresh)]
    if _bits(saved) != _bits(fresh) or sizes[0] != sizes[1]:
        raise UserError(f"tune.optimizer: {file} holds moments of another optimiser; use reset, or delete it")
    optimizer.load_state_dict(saved)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = rate


def _bits(state: dict[str, Any]) -> int:
    """torch's AdamW tells how it is computed in its groups, bitsandbytes' does not."""
    return 32 if "fused" in state["param_groups"][0] else 8
