"""Tuning: TextLearner against a stock ``trl.SFTTrainer``, SmolLM2-135M, the same tokens, one epoch, batch size 8.

``rate``: tokens (prompt and output, no padding) per second from the end of the first step to the end of the last:
set-up, warm-up and saving are left out on both sides. The stock trainer keeps its defaults, gradient checkpointing
among them; the second case turns that off.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from paired import main, real_model, stopwatch, trl_options

CASES = {
    "tune, SFTTrainer as it comes": {"examples": 96, "checkpointing": True},
    "tune, SFTTrainer without gradient checkpointing": {"examples": 96, "checkpointing": False},
}


def pairs(examples: int) -> list[tuple[list[int], list[int]]]:
    """Like the quickstart's: 6 to 20 prompt tokens, mostly 40 output tokens, some shorter."""
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(100, 40000) for _ in range(count)]

    return [
        (ids(draw.randint(6, 20)), ids(40 if draw.random() < 0.8 else draw.randint(8, 39))) for _ in range(examples)
    ]


def tokens(examples: list[tuple[list[int], list[int]]]) -> int:
    return sum(len(prompt) + len(output) for prompt, output in examples)


def ours(examples: int, checkpointing: bool) -> dict[str, float]:
    from raftune import progress
    from raftune.tune.text import TextLearner

    work = pairs(examples)
    stamps: list[float] = []

    def watch(description: str, total: int) -> tuple[progress.Advance, Callable[[], None]]:
        return lambda done: stamps.append(time.perf_counter()) if done else None, lambda: None

    with tempfile.TemporaryDirectory() as scratch, progress.shown_by(watch):
        TextLearner(learning_rate=2e-5, batch_size=8).fit(real_model(), work, Path(scratch) / "policy", (0,))
    return {"rate": rate(work, stamps)}


def rate(work: list[tuple[list[int], list[int]]], stamps: list[float]) -> float:
    """Tokens per second from the end of the first step to the end of the last."""
    steps = len(stamps)
    return tokens(work) * (steps - 1) / steps / (stamps[-1] - stamps[0])


def peer(examples: int, checkpointing: bool) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    work = pairs(examples)
    callback, stamps = stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        changed = {} if checkpointing else {"gradient_checkpointing": False}
        SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(real_model(), dtype=torch.float32),
            args=SFTConfig(per_device_train_batch_size=8, num_train_epochs=1, **trl_options(scratch), **changed),
            train_dataset=Dataset.from_list(
                [{"input_ids": [*p, *o], "completion_mask": [0] * len(p) + [1] * len(o)} for p, o in work]
            ),
            processing_class=AutoTokenizer.from_pretrained(real_model()),
            callbacks=[callback],
        ).train()
    return {"rate": rate(work, stamps)}


if __name__ == "__main__":
    main(CASES, {"ours": ours, "peer": peer})
