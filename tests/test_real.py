"""End to end on the real SmolLM2-135M-Instruct."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import prompts_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from raftune.models import locate
from raftune.sample.text import TextSampler

pytestmark = pytest.mark.real
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def smollm() -> str:
    return locate("asset:smollm2-135m-instruct")


def test_the_rebuilt_model_speaks(smollm: str) -> None:
    """The dequantised weights are a language model's: it knows what comes next, in its chat format too."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm).eval(), AutoTokenizer.from_pretrained(smollm)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    with torch.inference_mode():
        out = model.generate(torch.tensor([chat]), max_new_tokens=12, do_sample=False)[0, len(chat) :]
    assert "Paris" in tokenizer.decode(out)
    assert not (Path(smollm) / "config.json").read_text().count("quantization")


def test_greedy_equals_generate_on_the_real_model(smollm: str) -> None:
    prompts = prompts_of("I walked out of this film", "The score lifts every scene, especially", "Rarely")
    found = TextSampler(max_new_tokens=24, top_k=1).sample(smollm, prompts, 2, (0,))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm).eval(), AutoTokenizer.from_pretrained(smollm)
    for prompt, candidate in zip(prompts, found[::2], strict=True):
        ids = tokenizer(prompt.content, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert list(candidate.output.token_ids) == out.tolist()


def test_two_rounds_of_the_quickstart(tmp_path: Path) -> None:
    """Smaller than the shipped recipe, in the hardware's own precision: what is chosen is better than what was drawn,
    and the held-out reward rises."""
    changes = ["rounds=2", "prompts.heldout=48", "sample.max_new_tokens=24", "tune.learning_rate=1e-4"]
    command = [sys.executable, "-m", "raftune.cli", "run", "recipes/quickstart.yaml", "--out", str(tmp_path / "run")]
    environment = {k: v for k, v in os.environ.items() if k != "RAFTUNE_DTYPE"}
    result = subprocess.run(
        [*command, *(part for change in changes for part in ("--set", change))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["chosen/reward_mean"] > rows[1]["sample/reward_mean"] + 0.3
    assert rows[2]["heldout/reward_mean"] > rows[0]["heldout/reward_mean"] + 0.05
    assert abs(rows[0]["heldout/kl"]) < 0.5
    assert 10 < rows[0]["heldout/perplexity"] < 100
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "best")
