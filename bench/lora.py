"""LoRA on SmolLM2-135M: what an adapter beside the weights costs in sampling, and what each way of serving it says.

``merged``: the adapter in the weights, as a checkpoint of its own; ``beside``: unmerged. All sides in one process, one
after the other, again and again; the best of each counts. Prints one JSON line a case: new tokens per second.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paired import machine, real_model
from sample import prompt_ids

CASES = {"43-token prompts, 8 × K=16, 32 new": (8, 16, 32), "43-token prompts, 1 × K=8, 32 new": (1, 8, 32)}


def adapter(folder: Path, r: int) -> Path:
    """A random adapter of rank ``r`` on all linear layers, with small weights."""
    import torch
    from peft import LoraConfig, get_peft_model

    from raftune.models import load_model

    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=2 * r, target_modules="all-linear")
    model = get_peft_model(load_model(real_model(), torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
    model.peft_config["default"].base_model_name_or_path = real_model()
    model.save_pretrained(folder)
    return folder


def rate(model: Any, clock: Callable[[], float], prompts: int, k: int, new: int) -> float:
    from raftune.sample.decode import NEVER, Work, decode_shared
    from raftune.sample.draw import Temper, uniforms
    from raftune.sample.probe import prepare

    assert prepare(model, 43 + new)
    owner = [row for row in range(prompts) for _ in range(k)]
    work = Work(prompt_ids(43, prompts), owner, uniforms([(0, row, i) for i, row in enumerate(owner)], new))
    start = clock()
    decode_shared(model, work, Temper(), NEVER)
    return prompts * k * new / (clock() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    from peft import PeftModel

    from raftune.models import compute_dtype, device, load_model

    clock = time.process_time if options.cpu else time.perf_counter
    print(json.dumps({"machine": machine()}), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(adapter(Path(scratch), options.r))
        dtype = compute_dtype(device())

        def beside(cast: bool) -> Any:
            base = load_model(real_model(), dtype)
            return PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=cast).get_base_model()

        sides = {"merged": load_model(folder, dtype), "beside": beside(False), "beside, float32": beside(True)}
        for case, (prompts, k, new) in CASES.items():
            best = dict.fromkeys(sides, 0.0)
            for turn in range(options.repeats + 1):
                for side, model in sides.items():
                    found = rate(model, clock, prompts, k, new if turn else 4)
                    best[side] = max(best[side], found if turn else 0.0)
            ratios = {f"{side} / merged": best[side] / best["merged"] for side in sides}
            print(json.dumps({"case": case, **best, **ratios}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
