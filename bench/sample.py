"""``TextSampler`` against ``model.generate(num_return_sequences=K)`` and vLLM: SmolLM2-135M-Instruct, the same work.

No side may stop early, so all decode prompts × K × new tokens at temperature 1; ``rate`` is new tokens per second after
a warm-up, loading aside. The prompts are distinct (random token ids), each has K answers. vLLM runs in an environment
of its own (``make vllm``).
"""

from __future__ import annotations

import random
from pathlib import Path

import machine
from machine import clock
from paired import Side, main, real_model

CASES = {
    "43-token prompts, K=16, 64 new, 8 prompts": {"length": 43, "prompts": 8, "k": 16, "new": 64},
    "43-token prompts, K=16, 64 new, 16 prompts": {"length": 43, "prompts": 16, "k": 16, "new": 64},
    "256-token prompts, K=32, 48 new, 8 prompts": {"length": 256, "prompts": 8, "k": 32, "new": 48},
}


def prompt_ids(length: int, prompts: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(100, 40000) for _ in range(length)] for _ in range(prompts)]


def ours(length: int, prompts: int, k: int, new: int) -> dict[str, float]:
    import limits

    from raftune.models import compute_dtype, device, load_model
    from raftune.sample.decode import NEVER, Work, decode_shared
    from raftune.sample.draw import Temper, uniforms
    from raftune.sample.probe import prepare

    model = load_model(real_model(), compute_dtype(device()))
    assert prepare(model, length + new)
    owner = [row for row in range(prompts) for _ in range(k)]

    def once(steps: int) -> float:
        start = clock()
        addresses = [(0, row, index) for index, row in enumerate(owner)]
        work = Work(prompt_ids(length, prompts), owner, uniforms(addresses, steps))
        drawn = decode_shared(model, work, Temper(), NEVER)
        assert sum(len(row.token_ids) for row in drawn) == prompts * k * steps
        return clock() - start

    once(4)
    found = {"rate": prompts * k * new / once(new), "peak_gb": machine.peak_gb()}
    return found | limits.of_decoding(model, prompts, length, k, new)


def generate(length: int, prompts: int, k: int, new: int) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    from raftune.models import compute_dtype, device

    model = AutoModelForCausalLM.from_pretrained(real_model(), dtype=compute_dtype(device())).to(device()).eval()
    ids = torch.tensor(prompt_ids(length, prompts), device=model.device)

    def once(steps: int) -> float:
        start = clock()
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
        return clock() - start

    once(4)
    return {"rate": prompts * k * new / once(new)}


SIDES = {
    "ours": Side(ours),
    "generate": Side(generate),
    "vLLM": Side(Path(__file__).with_name("vllm_side.py"), ".venv-vllm"),
}

if __name__ == "__main__":
    main(CASES, SIDES)
