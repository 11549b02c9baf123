"""``TextLearner`` against ``trl.SFTTrainer``: SmolLM2-135M-Instruct, the same tokens, one epoch, batch size 8.

``rate``: tokens (prompt and output, no padding) per second from the end of the first step to the end of the last:
set-up, warm-up and saving are left out on all sides. SFTTrainer keeps its defaults, gradient checkpointing among them;
a second side turns that off, a third also tells the C allocator to keep freed memory, by the environment variables
``MALLOC_MMAP_MAX_`` and ``MALLOC_TRIM_THRESHOLD_``, as raftune does by itself. What is left of the difference: logits
only where there is loss, batches of like length, no entropy and accuracy beside the loss.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import machine
from paired import Side, main, real_model, stopwatch, trl_options

BATCH = 8
CASES = {"96 outputs, batch size 8": {"examples": 96}}
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
TRL = ".venv-trl"


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


def ours(examples: int) -> dict[str, float]:
    import limits

    from raftune import progress
    from raftune.models import compute_dtype, device, load_model
    from raftune.tune.text import TextLearner

    work = pairs(examples)
    stamps: list[float] = []

    def watch(description: str, total: int) -> tuple[progress.Advance, Callable[[], None]]:
        return lambda done: stamps.append(machine.clock()) if done else None, lambda: None

    with tempfile.TemporaryDirectory() as scratch, progress.shown_by(watch):
        TextLearner(learning_rate=2e-5, batch_size=BATCH).fit(real_model(), work, Path(scratch) / "policy", (0,))
    found = {"rate": rate(work, stamps), "peak_gb": machine.peak_gb()}
    steps, outputs = examples // BATCH, sum(len(output) for _, output in work)
    return found | limits.of_tuning(
        load_model(real_model(), compute_dtype(device())), tokens(work) // steps, outputs // steps
    )


def rate(work: list[tuple[list[int], list[int]]], stamps: list[float]) -> float:
    """Tokens per second from the end of the first step to the end of the last."""
    steps = len(stamps)
    return tokens(work) * (steps - 1) / steps / (stamps[-1] - stamps[0])


def stock(examples: int, **changed: object) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    work = pairs(examples)
    callback, stamps = stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(real_model(), dtype=torch.float32),
            args=SFTConfig(per_device_train_batch_size=BATCH, num_train_epochs=1, **trl_options(scratch), **changed),
            train_dataset=Dataset.from_list(
                [{"input_ids": [*p, *o], "completion_mask": [0] * len(p) + [1] * len(o)} for p, o in work]
            ),
            processing_class=AutoTokenizer.from_pretrained(real_model()),
            callbacks=[callback],
        ).train()
    return {"rate": rate(work, stamps)}


def without_checkpointing(examples: int) -> dict[str, float]:
    return stock(examples, gradient_checkpointing=False)


SIDES = {
    "ours": Side(ours),
    "SFTTrainer": Side(stock, TRL),
    "SFTTrainer, no checkpointing": Side(without_checkpointing, TRL),
    "SFTTrainer, no checkpointing, memory kept": Side(without_checkpointing, TRL, KEEP_MEMORY),
}

if __name__ == "__main__":
    main(CASES, SIDES)
