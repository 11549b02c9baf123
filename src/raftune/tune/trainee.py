"""What of a text policy is trained: all of it, or an adapter beside a base that stays."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ..adapters import Base
from ..errors import UserError
from ..models import Tokenizer, adapter_base, compute_dtype, device, load_model, of_text
from ..resident import CAUSAL, load_base, parted, resident
from ..types import Policy
from .lora import Lora

log = logging.getLogger("raftune")
FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


class Whole:
    """All parameters in float32."""

    def __init__(self, policy: Policy, checkpointing: bool) -> None:
        resident.free()
        self.model: Any = load_model(policy, torch.float32)
        for parameter in self.model.parameters():
            # Loading maps the file; training in place would copy it page by page, at the first step, which is slower
            parameter.data = parameter.data.clone()
        if checkpointing:
            self.model.activation_checkpointing_enable()

    @property
    def transformer(self) -> Any:
        return self.model

    def give_back(self, out: Policy, tokenizer: Tokenizer) -> None:
        """What is in memory serves inference, without the disk: ``out`` becomes resident, as loading would make it."""
        try:
            served, told = type(self.model).from_pretrained(
                None,
                config=self.model.config,
                state_dict=self.model.state_dict(),
                dtype=compute_dtype(device()),
                output_loading_info=True,
            )
        except Exception as error:  # whatever a foreign architecture objects to: its checkpoint is written and will do
            log.info("tune: %s is loaded from its folder (%s)", out, type(error).__name__)
            return
        served.generation_config = self.model.generation_config
        self.model.to("meta")  # the float32 weights go now; the rest waits for the garbage collector
        if not any(told.get(kind) for kind in FAULTS):  # else its files name the weights otherwise than its modules
            resident.put(out, CAUSAL, Base(served.to(device()).eval(), tokenizer))


class Adapted:
    """A LoRA adapter in float32, the policy's own or a new one, beside its base in the compute precision.

    The base is the resident one, taken from its slot: sampling, references and tuning share one copy. It is put back
    by :meth:`give_back`, as it was; where something fails before, the next who asks loads it anew.
    """

    def __init__(self, policy: Policy, checkpointing: bool, lora: Lora) -> None:
        self.folder = of_text(policy)
        own = adapter_base(self.folder)
        self.name, beside = parted(policy) if own else (self.folder, None)
        self.shared = own is None or beside is not None  # else the adapter may change its base
        self.base = _base(self.name) if self.shared else _alone(own or self.folder)
        self.checkpointing = checkpointing
        below = self.base.bare()
        self.model = _continued(below, self.folder, own, lora) if own else _new(below, self.folder, lora)
        if checkpointing:  # after peft, which would hook the embeddings too, and nobody could take that hook off
            below.activation_checkpointing_enable()

    @property
    def transformer(self) -> Any:
        return self.base.model

    def give_back(self, out: Policy, tokenizer: Tokenizer) -> None:
        """Take the adapter out; the base is again what was loaded, and resident."""
        below = self.model.unload()
        if self.checkpointing:
            below.activation_checkpointing_disable()
            below.disable_input_require_grads()
        below.eval()
        if self.shared:
            resident.put(self.name, CAUSAL, self.base)


def _base(name: str) -> Base:
    base = resident.take(name, CAUSAL, lambda: load_base(name))
    model = base.model
    if any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers())):
        del base, model  # sampling made it something that training cannot keep for its backward pass
        return load_base(name)
    return base


def _alone(name: str) -> Base:
    resident.free()
    return load_base(name)


def _continued(below: Any, folder: str, base: str, lora: Lora) -> Any:
    """The policy's own adapter, to go on with."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(below, folder, is_trainable=True)
    had = model.peft_config["default"]
    if (getattr(had, "r", None), getattr(had, "lora_alpha", None)) != (lora.r, lora.alpha):
        raise UserError(
            f"tune.lora: {folder} is an adapter with r={getattr(had, 'r', None)}, alpha="
            f"{getattr(had, 'lora_alpha', None)}; set these, or start from its base {base}"
        )
    return model


def _new(below: Any, folder: str, lora: Lora) -> Any:
    """A new one, with the policy as its base."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) if lora.target_modules else "all-linear",
    )
    try:
        model = get_peft_model(below, config)
    except ValueError as error:
        raise UserError(f"tune.lora: {str(error).splitlines()[0]}") from error
    if Path(folder).is_dir():  # the adapter opens from any working directory
        model.peft_config["default"].base_model_name_or_path = str(Path(folder).resolve())
    return model
