"""What Accelerate's trackers ask of the process, without an Accelerator."""

from __future__ import annotations

from accelerate import PartialState

from ..models import device


def prepare() -> None:
    """Their classes need to know which process they are in. The state is made as the learner's Accelerator makes it,
    on the same device; it has no mixed precision, which Accelerate fixes once per process."""
    PartialState(cpu=device().type == "cpu")
