"""Sampling: TextSampler against ``model.generate(num_return_sequences=K)``, SmolLM2-135M, the same work.

Neither side may stop early, so both decode prompts × K × new tokens; ``rate`` is new tokens per second.
``share_of_matmul``: FLOPs of the decoded tokens (2 × parameters each) over what a plain bf16 matmul of as many rows
does on this machine in the same time.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from paired import main, real_model

if TYPE_CHECKING:
    import torch

CASES = {
    "sample 43-token prompts, K=16, 64 new, 8 prompts": {"length": 43, "prompts": 8, "k": 16, "new": 64},
    "sample 43-token prompts, K=16, 64 new, 16 prompts": {"length": 43, "prompts": 16, "k": 16, "new": 64},
    "sample 256-token prompts, K=32, 48 new, 8 prompts": {"length": 256, "prompts": 8, "k": 32, "new": 48},
}


def prompt_ids(length: int, prompts: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(100, 40000) for _ in range(length)] for _ in range(prompts)]


def ours(length: int, prompts: int, k: int, new: int) -> dict[str, float]:
    from raftune.models import compute_dtype, device, load_model
    from raftune.sample.decode import NEVER, Work, decode_shared
    from raftune.sample.draw import Temper, uniforms
    from raftune.sample.probe import prepare

    model = load_model(real_model(), compute_dtype(device()))
    assert prepare(model, length + new)
    owner = [row for row in range(prompts) for _ in range(k)]

    def once(steps: int) -> float:
        start = time.perf_counter()
        addresses = [(0, row, index) for index, row in enumerate(owner)]
        work = Work(prompt_ids(length, prompts), owner, uniforms(addresses, steps))
        drawn = decode_shared(model, work, Temper(), NEVER)
        assert sum(len(row.token_ids) for row in drawn) == prompts * k * steps
        return time.perf_counter() - start

    once(4)
    seconds = once(new)
    rate = prompts * k * new / seconds
    flops = 2 * sum(p.numel() for p in model.parameters())
    return {"rate": rate, "share_of_matmul": rate * flops / matmul_rate(prompts * k, model.dtype)}


def matmul_rate(rows: int, dtype: torch.dtype) -> float:
    """FLOP/s of ``[rows, 576] @ [576, 1536]``, the model's feed-forward shape, over weights that do not fit a cache."""
    import torch

    inputs = torch.randn(rows, 576, dtype=dtype)
    weights = [torch.randn(1536, 576, dtype=dtype) for _ in range(60)]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for weight in weights:
            torch.nn.functional.linear(inputs, weight)
        times.append(time.perf_counter() - start)
    return 2 * rows * 576 * 1536 * len(weights) / sorted(times)[2]


def peer(length: int, prompts: int, k: int, new: int) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    from raftune.models import compute_dtype, device

    model = AutoModelForCausalLM.from_pretrained(real_model(), dtype=compute_dtype(device())).to(device()).eval()
    ids = torch.tensor(prompt_ids(length, prompts), device=model.device)

    def once(steps: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                num_return_sequences=k,
                max_new_tokens=steps,
                min_new_tokens=steps,
            )
        assert out.shape == (prompts * k, length + steps)
        return time.perf_counter() - start

    once(4)
    return {"rate": prompts * k * new / once(new)}


if __name__ == "__main__":
    main(CASES, {"ours": ours, "peer": peer})
