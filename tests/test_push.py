"""A policy that leaves its run: what opens it, what its card says, what arrives at a Hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import load_dataset
from diffusers import DiffusionPipeline
from fake_hub import TOKEN, hub
from huggingface_hub import DatasetCard, ModelCard
from peft import AutoPeftModelForCausalLM
from test_cli import RECIPES, REWARDS, call, write_recipe
from test_share import EVIL, a_run, exported, refused
from transformers import AutoModelForCausalLM, AutoTokenizer

from raftune.report.record import Record
from raftune.share import base, card
from raftune.share.base import Base


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The tiny model with a card of its own."""
    folder = tmp_path_factory.mktemp("hub") / "org--tiny"
    shutil.copytree(tiny, folder)
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: tiny-licence\nlicense_link: https://example.org/LICENSE\n---\n# Tiny\n"
    )
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """A run of one round that tuned a LoRA."""
    work = tmp_path_factory.mktemp("work")
    prompts = [{"id": f"p{i}", "prompt": f"The film number {i}"} for i in range(12)]
    (work / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (work / "my_rewards.py").write_text(REWARDS)
    changes: dict[str, Any] = {"rounds": 1, "report": False, "prompts": {"path": "prompts.jsonl", "heldout": 3}}
    changes |= {"sample": {"prompts_per_round": 4, "k": 3, "max_new_tokens": 8}}
    changes |= {"tune": {**RECIPES["text"]["tune"], "lora": {"r": 2, "alpha": 64}}}
    recipe = write_recipe(work, base_folder, **changes)
    result = call("run", recipe, "--out", work / "run")
    assert result.exit_code == 0, result.output + result.stderr
    return work / "run"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(2, 22)[None]).logits


def test_an_adapter_opens_as_it_is_and_merged(adapted: Path, base_folder: Path, tmp_path: Path) -> None:
    out, merged = tmp_path / "adapter", tmp_path / "merged"
    note = exported(adapted, "policy", out, "--round", 1).output
    assert "give --base ID, or --merge" in note
    exported(adapted, "policy", merged, "--round", 1, "--merge")
    assert not (merged / "adapter_config.json").exists() and not (out / "raftune.json").exists()
    beside = logits(AutoPeftModelForCausalLM.from_pretrained(out).eval())
    whole = logits(AutoModelForCausalLM.from_pretrained(merged).eval())
    start = logits(AutoModelForCausalLM.from_pretrained(base_folder).eval())
    assert torch.allclose(beside, whole, atol=1e-4) and not torch.allclose(start, whole, atol=1e-2)
    for folder in (out, merged):
        assert AutoTokenizer.from_pretrained(folder)("a b").input_ids
    exported(adapted, "policy", out, "--round", 1, "--base", "org/tiny")  # an earlier export may be replaced
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"


def test_its_card_says_what_it_is(adapted: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    exported(adapted, "policy", out, "--round", 1, "--base", "org/tiny")
    found = ModelCard.load(out / "README.md")
    header = found.data.to_dict()
    expected = {"library_name": "peft", "base_model": "org/tiny", "base_model_relation": "adapter"}
    expected |= {"pipeline_tag": "text-generation", "tags": ["raft", "raftune", "lora"]}
    expected |= {"license": "other", "license_name": "tiny-licence", "license_link": "https://example.org/LICENSE"}
    assert header == expected  # prompts are a file: no datasets
    rows = {row["round"]: row for row in map(json.loads, (adapted / "metrics.jsonl").read_text().splitlines())}
    before, after = (f"{rows[n]['heldout/reward_mean']:.3g} ± {rows[n]['heldout/reward_se']:.2g}" for n in (0, 1))
    assert f"| held-out reward | {before} | {after} |" in found.text
    assert "arxiv.org/abs/2304.06767" in found.text and "{RAFT}: Reward rAnked" in found.text
    assert str(adapted.parent) not in found.content  # nothing of this machine
    told = yaml.safe_load(found.text.split("```yaml\n")[1].split("```")[0])
    assert told["sample"]["k"] == 3 and told["model"] == "org--tiny"
    exported(adapted, "policy", out, "--round", 1, "--merge")
    assert ModelCard.load(out / "README.md").data.to_dict().keys() == {*expected} - {
        "base_model",
        "base_model_relation",
    }


def test_nothing_of_a_card_is_guessed_or_obeyed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", evaluate={"monitor": [{"use": EVIL}]})
    record = Record.of(run)
    known = base.base_of(record)
    assert known == Base("tiny") and base.licence_of("some/model") == {}
    assert base.base_of(record, called="org/tiny").hub_id == "org/tiny"
    assert base.licence_of("asset:smollm2-135m-instruct") == {"license": "apache-2.0"}
    text = str(card.of_model(record, 2, known, tmp_path, adapter=False))
    header = ModelCard(text).data.to_dict()
    assert "license" not in header and "base_model" not in header and "datasets" not in header
    assert "Licence of the base: unknown" in text
    for secret in ("/home/somebody", "me:word"):
        assert secret not in text
    above = text.split("````yaml")[0]  # the recipe has three ticks, so its fence has four
    assert "<script>" not in above and "&lt;script&gt;" in above and "https://example.org/v1" in text
    data = str(card.of_dataset(record, "run", {"sft": 8, "pairs": 4}, False, 0.0))
    assert [one["config_name"] for one in DatasetCard(data).data.to_dict()["configs"]] == ["sft", "pairs"]
    files = json.loads((run / "fingerprint").read_text())
    (run / "fingerprint").write_text(json.dumps({key: files[key] for key in files if "sha256" not in key}))
    assert "datasets" in ModelCard(str(card.of_model(Record.of(run), 2, known, tmp_path, False))).data.to_dict()


def test_pictures_policies_open_in_diffusers(tmp_path: Path, pipeline_of: Callable[..., Path]) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"id": "p0", "prompt": "a red seven"}\n{"id": "p1", "prompt": "a cow"}')
    pipeline = pipeline_of("sd")
    tune = {"learning_rate": 1e-1, "batch_size": 2, "steps": 4, "lora": {"r": 2, "alpha": 8}}
    recipe = write_recipe(tmp_path, pipeline, "image", rounds=1, report=False, tune=tune)
    assert call("run", recipe, "--out", tmp_path / "run").exit_code == 0
    out, merged = tmp_path / "lora", tmp_path / "merged"
    exported(tmp_path / "run", "policy", out, "--round", 1, "--base", "org/tiny-sd")
    exported(tmp_path / "run", "policy", merged, "--round", 1, "--merge")
    assert str(pipeline) not in (out / "pytorch_lora_weights.safetensors").read_bytes().decode("latin-1")

    def draw(pipe: Any) -> np.ndarray[Any, Any]:
        pipe.set_progress_bar_config(disable=True)
        told = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
        return pipe("a cow", generator=torch.Generator().manual_seed(0), **told).images[0]

    start, beside, whole = (DiffusionPipeline.from_pretrained(folder) for folder in (pipeline, pipeline, merged))
    beside.load_lora_weights(out)
    assert np.allclose(draw(beside), draw(whole), atol=1e-3)
    assert not np.allclose(draw(start), draw(whole), atol=1e-3)
    header = ModelCard.load(out / "README.md").data.to_dict()
    assert (header["library_name"], header["pipeline_tag"]) == ("diffusers", "text-to-image")
    result = call("push", tmp_path / "run", "--what", "dataset", "--dry-run")
    assert result.exit_code == 0, result.output
    opened: Any = load_dataset(str(tmp_path / "run" / "hub" / "dataset"), split="train", cache_dir=str(tmp_path / "c"))
    assert len(opened) == 2 and opened[0]["image"].size == (16, 16)


def online(endpoint: str, **more: str) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if key not in {"HF_HUB_OFFLINE", "HF_TOKEN"}}
    return own | {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"} | more


def pushed(endpoint: str, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raftune.cli", "push", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=online(endpoint, **more), timeout=120)


def test_what_arrives_at_a_hub(adapted: Path, tmp_path: Path) -> None:
    dry = call("push", adapted, "--round", 1, "--base", "org/tiny", "--what", "both", "--dry-run")
    assert dry.exit_code == 0, dry.output
    ready = {
        kind: {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for kind, folder in (("model", adapted / "hub" / "model"), ("dataset", adapted / "hub" / "dataset"))
    }
    assert {"README.md", "adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= ready["model"].keys()
    assert {"README.md", "sft/train.parquet"} <= ready["dataset"].keys()
    options = (adapted, "--round", 1, "--base", "org/tiny", "--what", "both", "--to", "org/film", "--private")
    with hub() as there:
        nobody = pushed(there.endpoint, *options)
        assert nobody.returncode == 2 and "Traceback" not in nobody.stderr and "HF_TOKEN" in nobody.stderr
        assert not there.files and (adapted / "hub" / "model").is_dir()
        done = pushed(there.endpoint, *options, HF_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
        assert there.files == {(kind, "org/film"): ready[kind] for kind in ("model", "dataset")}
        assert set(there.private.values()) == {"private"}
        assert f"{there.endpoint}/datasets/org/film" in done.stdout
        assert not (adapted / "hub" / "model").exists()
    assert "offline" in refused("push", adapted, "--round", 1).lower()  # as tests are


TRAINER = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from raftune import RAFTConfig, RAFTTrainer

def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in text) for text in completions]

args = RAFTConfig(
    output_dir=sys.argv[2], num_generations=3, per_device_train_batch_size=4, max_completion_length=6, rounds=1,
    prompts_per_round=3, use_cpu=True, report_to="none", push_to_hub=True, hub_model_id="org/trained",
)
trainer = RAFTTrainer(sys.argv[1], vowels, args, [{"prompt": f"Count to {i}:"} for i in range(6)])
trainer.train()
trainer.save_model(sys.argv[3])
"""


def test_the_trainer_pushes_what_it_saves(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "README.md").write_text("my own words")
    with hub() as there:
        command = [sys.executable, "-c", TRAINER, str(tiny), str(tmp_path / "run"), str(tmp_path / "saved")]
        env = online(there.endpoint, HF_TOKEN=TOKEN)
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        (arrived,) = there.files.values()
    saved = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert arrived.keys() == saved.keys() and saved.pop("README.md") == b"my own words"
    assert "raftune" in ModelCard(arrived.pop("README.md").decode()).data.tags and arrived == saved
    AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
