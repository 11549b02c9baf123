"""The seams: a modality is a Sampler, a Learner, a Codec and its Rewards. Nothing else knows which modality it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .types import Candidate, Policy, Prompt, Scored


class Sampler(Protocol):
    """Prompt → Candidate."""

    def sample(self, policy: Policy, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        """``k`` candidates of each prompt, in the order of ``prompts``, ``index`` 0..k-1.

        Every draw is addressed by (``*seed``, prompt id, index), so it depends on neither batch nor worker.
        """
        ...


class Reward(Protocol):
    """Candidate → float. None means not scored; an exception stops the round."""

    @property
    def name(self) -> str:
        """Names this part of the reward: the column ``reward/<name>``.

        An attribute ``elsewhere = True`` beside it says that the work is done by another process or machine: then a
        shard is scored in a thread while the next one is sampled. Never for what uses the model's memory or device.
        """
        ...

    def __call__(self, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        """One number, or None, for each candidate."""
        ...


class Select(Protocol):
    """The rule that picks what to learn from."""

    def __call__(self, scored: Sequence[Scored], seed: tuple[object, ...]) -> Sequence[Scored]:
        """What was chosen, in sampling order. ``scored`` may lie on disk: it is decoded while it is iterated."""
        ...


class Learner(Protocol):
    """Chosen → Checkpoint."""

    def tune(self, policy: Policy, chosen: Sequence[Scored], out: Path, seed: tuple[object, ...]) -> Policy:
        """Fine-tune ``policy`` on ``chosen`` and write the next checkpoint to ``out``, whole or not at all.

        Intermediate state may lie beside ``out``; figures go to ``out / "raftune.json"``.
        """
        ...


class Codec(Protocol):
    """How an output lies on disk. An attribute ``portable = True`` says that its columns mean the same in any folder:
    then rows are copied from table to table without being decoded."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """Column name → pyarrow type; the column ``output`` is what a person reads."""
        ...

    def encode(self, output: Any, folder: Path) -> dict[str, Any]:
        """The output's columns. What is no column (a picture) is written below ``folder``, where the table will lie."""
        ...

    def decode(self, row: Mapping[str, Any], folder: Path) -> Any:
        """The output again; ``folder`` is where the table lies."""
        ...
