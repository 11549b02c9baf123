"""A LoRA adapter's settings. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lora:
    """A peft LoRA adapter; ``target_modules`` None: of text all linear layers but the head, of images the attention."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None
