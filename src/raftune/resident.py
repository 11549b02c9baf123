"""The one model in memory, and who speaks in it: sampling, reading, scoring and tuning ask here, in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel

from .adapters import Base, stands_beside
from .models import Tokenizer, adapter_base, compute_dtype, device, load_model, load_tokenizer, loading, of_text, trim
from .types import Policy

T = TypeVar("T")
CAUSAL = "causal"


class Resident:
    """The one model in memory. Whoever asks for another gets it loaded and the one before freed."""

    def __init__(self) -> None:
        self._key: object = None
        self._value: Any = None
        self._leave: Callable[[], None] | None = None

    def get(self, policy: Policy, kind: str, load: Callable[[], T]) -> T:
        """What ``load`` made for this checkpoint and kind; made anew if the files of the checkpoint changed."""
        key = (kind, state_of(policy))
        if self._key != key:
            self.free()
            self._value = load()
            self._key = key
        return self._value

    def take(self, policy: Policy, kind: str, load: Callable[[], T]) -> T:
        """The same for a caller who will change it: the slot is empty until the caller puts back what is as new."""
        value = self.get(policy, kind, load)
        self.free()
        return value

    def put(self, policy: Policy, kind: str, value: Any) -> None:
        """``value`` is what loading this checkpoint would make."""
        self.free()
        self._key, self._value = (kind, state_of(policy)), value

    def claim(self, guest: object, leave: Callable[[], None]) -> None:
        """Room for a model that lives elsewhere (an engine of its own): what was here goes, and ``leave`` is called
        when another model needs the room."""
        if self._key is not guest:
            self.free()
            self._key, self._leave = guest, leave

    def free(self) -> None:
        """Let the model go, and between stages hand freed memory back, so that their peaks do not add up."""
        leave, self._key, self._value, self._leave = self._leave, None, None, None
        if leave is not None:
            leave()
        trim()


def state_of(policy: Policy) -> tuple[object, ...]:
    """Changes when the files of a checkpoint do."""
    folder = Path(str(policy))
    if not folder.is_dir():
        return (str(policy),)
    folder = folder.resolve()  # one folder has one state, whatever leads to it
    found = [(str(entry), entry.stat()) for entry in sorted(folder.rglob("*")) if entry.is_file()]
    stats = [(name, stat.st_mtime_ns, stat.st_size) for name, stat in found]
    return (str(folder), *stats)


resident = Resident()


def causal(policy: Policy) -> tuple[PreTrainedModel, Tokenizer]:
    """The policy for inference, resident: sampling and evaluating it in turn load it once.

    A plain LoRA adapter stands beside its base's weights, unmerged, and the base stays: asking for the adapter, for
    another of the same base and for the base itself in turn loads the base once. The model is the same object each
    time and speaks as who was asked for last. Adapters that change their base (``modules_to_save``, a bias, …) or are
    of another kind are merged into a base of their own.
    """
    name, adapter = parted(policy)
    base = resident.get(name, CAUSAL, lambda: load_base(name))
    state = None if adapter is None else state_of(adapter)
    if base.speaks != state:
        trim()  # another policy: the next stage
    if adapter is None:
        return base.alone()
    if not base.holds(state):
        tokenizer = load_tokenizer(adapter)
        loading(adapter, lambda: base.attach(adapter, state, tokenizer))
    return base.speaking(state)


def load_base(policy: Policy) -> Base:
    """The policy in the compute precision, for inference and for adapters."""
    return Base(load_model(policy, compute_dtype(device())), load_tokenizer(policy))


def parted(policy: Policy) -> tuple[str, str | None]:
    """What of a policy is loaded whole, and the adapter beside it: of a plain LoRA its base and itself, of anything
    else itself and None."""
    folder = of_text(policy)
    base = adapter_base(folder)
    if base is None or adapter_base(of_text(base)) is not None or not loading(folder, lambda: stands_beside(folder)):
        return folder, None
    return of_text(base), folder
