"""One base in memory, LoRA adapters beside its weights: one of them speaks, or none, and the base stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WEIGHTS = "adapter_model.safetensors"
KEPT = 2  # adapters beside a base at once: the policy, and the one that it is measured by
# What a LoRA may say and still leave its base's weights alone; anything else must be as peft has it by default
FREE = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "inference_mode", "peft_version"),
}
STARTS = (True, False, "gaussian", "orthogonal")  # others (PiSSA, OLoRA, …) change the base when they begin


def stands_beside(folder: str) -> bool:
    """Is this adapter a plain LoRA, whose weights stand beside its base's and change none of them?"""
    from peft import LoraConfig, PeftConfig
    from safetensors import safe_open

    config = PeftConfig.from_pretrained(folder)
    weights = Path(folder) / WEIGHTS
    if not isinstance(config, LoraConfig) or not weights.exists():
        return False
    usual, said = LoraConfig().to_dict(), config.to_dict()
    if any(said[key] != usual[key] for key in usual.keys() - FREE) or config.init_lora_weights not in STARTS:
        return False
    with safe_open(weights, "pt") as tensors:  # a saved embedding would replace the base's
        return all(".lora_" in name for name in tensors.keys())  # noqa: SIM118


class Base:
    """A model in memory and the adapters beside it. ``model`` is always the same object, and its own weights are those
    that were loaded, to the bit: no adapter is merged. In bfloat16 merging would round a small change away, in float32
    taking it out again would not restore the base.

    Adapters have the base's precision here, as autocast gives them in tuning.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._injected: Any = None  # the PeftModel around the model, while there are adapters
        self._beside: dict[object, tuple[str, Any]] = {}
        self.speaks: object = None  # the state of the adapter that was asked for last

    def alone(self) -> tuple[Any, Any]:
        """The model without any adapter, and its tokenizer."""
        self.speaks = None
        if self._injected is not None:
            self._injected.base_model.disable_adapter_layers()
        return self.model, self.tokenizer

    def holds(self, state: object) -> bool:
        return state in self._beside

    def attach(self, folder: str, state: object, tokenizer: Any) -> None:
        """Load an adapter beside the base; ``state`` is what it is asked for by. The third to come sends two away."""
        from peft import PeftModel

        if len(self._beside) == KEPT:
            self.bare()
        name = f"beside{len(self._beside)}"
        options: dict[str, Any] = {"autocast_adapter_dtype": False, "torch_device": str(self.model.device)}
        if self._injected is None:
            self._injected = PeftModel.from_pretrained(self.model, folder, name, **options)
        else:
            self._injected.load_adapter(folder, name, **options)
        self._beside[state] = (name, tokenizer)

    def speaking(self, state: object) -> tuple[Any, Any]:
        """The model with this adapter, and its tokenizer."""
        self.speaks = state
        name, tokenizer = self._beside[state]
        self._injected.base_model.enable_adapter_layers()
        self._injected.set_adapter(name, inference_mode=True)
        return self.model, tokenizer

    def bare(self) -> Any:
        """The model as it was loaded: whatever peft put into it is taken out, also what was tuned on it."""
        if self._injected is not None:
            self._injected.unload()
        self._injected = self.speaks = None
        self._beside.clear()
        return self.model
