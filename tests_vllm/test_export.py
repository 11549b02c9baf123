"""What a run hands over, opened by vLLM as anybody would open it: nothing of ours stands between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import NEW, ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from raftune.types import Prompt

pytestmark = pytest.mark.usefixtures("free")
SMALL = [
    *("rounds=1", "prompts.heldout=4", "evaluate.k=1", "sample.prompts_per_round=8", "sample.k=2"),
    *("sample.max_new_tokens=12", "tune.learning_rate=1e-3"),
]
OPEN = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    asked = json.load(sys.stdin)
    adapter = asked["adapter"]
    lora = {"enable_lora": True, "max_lora_rank": 8} if adapter else {}
    model = LLM(asked["model"], dtype="float32", enforce_eager=True, max_model_len=256, **lora)
    with_it = {"lora_request": LoRARequest("ours", 1, adapter)} if adapter else {}
    greedy = SamplingParams(temperature=0, max_tokens=asked["new"])
    print("ANSWERS", json.dumps([one.outputs[0].text for one in model.generate(asked["prompts"], greedy, **with_it)]))
"""


def command(*arguments: object) -> None:
    line = [sys.executable, "-m", "raftune.cli", *map(str, arguments)]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]


def opened(model: str, adapter: str | None, prompts: list[str], script: Path) -> list[str]:
    """vLLM's greedy answers."""
    script.write_text(OPEN)
    asked = json.dumps({"model": model, "adapter": adapter, "prompts": prompts, "new": NEW})
    result = subprocess.run(
        [sys.executable, str(script)], input=asked, capture_output=True, text=True, timeout=900, env={**os.environ}
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("ANSWERS")]
    assert lines, result.stderr[-3000:]
    return json.loads(lines[0].removeprefix("ANSWERS"))


def generated(folder: str, prompts: list[str]) -> list[str]:
    """transformers' greedy answers; an adapter is found by its own configuration."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for prompt in prompts:
        rows = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**rows, do_sample=False, max_new_tokens=NEW)[0, rows["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(ids, skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("form", ["whole", "adapter", "merged"])
def test_a_policy_opens_in_vllm(form: str, smollm: str, prompts: list[Prompt], tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "policy"
    lora = [] if form == "whole" else ["tune.lora.r=4", "tune.lora.alpha=32"]
    command("run", "recipes/quickstart.yaml", "--out", run, *(p for c in (*SMALL, *lora) for p in ("--set", c)))
    command("export", run, "--format", "policy", "--round", 1, "--out", out, *(["--merge"] if form == "merged" else []))
    asked = [str(one.content) for one in prompts[:16]]
    adapter = (out / "adapter_config.json").exists()
    assert adapter == (form == "adapter")
    found = opened(smollm if adapter else str(out), str(out) if adapter else None, asked, tmp_path / "open.py")
    assert found == generated(str(out), asked)
    assert sum(one != other for one, other in zip(found, generated(smollm, asked), strict=True)) >= 8
