"""The trainer: the loop behind it, its lengths, what it says and refuses. Against TRL: test_trainer_manners.py."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from raftune import RAFTConfig, RAFTTrainer, UserError, table
from raftune.trainer_config import OF_OTHERS


def long(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def config(folder: Path, **given: Any) -> RAFTConfig:
    asked = {"num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 6, "report_to": "none"}
    return RAFTConfig(
        output_dir=str(folder), **{**asked, "rounds": 2, "prompts_per_round": 3, "use_cpu": True, **given}
    )


def asked(count: int = 8) -> Dataset:
    return Dataset.from_list([{"prompt": f"Count to {i}:"} for i in range(count)])


def test_rounds_are_those_of_the_loop(tiny: Path, tmp_path: Path) -> None:
    """What the run directory holds: K of each prompt, the best chosen by the function itself."""
    trainer = RAFTTrainer(str(tiny), long, config(tmp_path / "run"), asked())
    out = trainer.train()
    assert (out.global_step, trainer.state.global_step) == (2, 2)
    assert [row["round"] for row in trainer.state.log_history] == [0, 1, 2]
    for number in (1, 2):
        scored = table.read_scored(tmp_path / "run" / "rounds" / f"{number:04d}" / "scored.parquet", table.TextCodec())
        assert len(scored) == 12
        chosen = table.read_scored(tmp_path / "run" / "rounds" / f"{number:04d}" / "chosen.parquet", table.TextCodec())
        for one in chosen:
            mine = [s.reward for s in scored if s.candidate.prompt.id == one.candidate.prompt.id]
            assert one.reward == max(r for r in mine if r is not None) == len(str(one.candidate.output))
    assert trainer.evaluate()["eval_reward_mean"] == trainer.state.log_history[-1]["heldout/reward_mean"]
    again = RAFTTrainer(str(tiny), long, config(tmp_path / "run"), asked())
    again.train()  # nothing is left to do
    assert again.state.log_history == trainer.state.log_history


def test_a_model_in_memory_a_lora_two_rewards_and_an_eval_dataset(tiny: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(f"{state.global_step}: {'heldout/reward/short' in logs}")

    def short(completions: list[str], **columns: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    trainer = RAFTTrainer(
        AutoModelForCausalLM.from_pretrained(tiny),
        [long, short],
        config(tmp_path / "run", reward_weights=[1.0, 0.5], rounds=1),
        asked(),
        Dataset.from_list([{"prompt": "Held out"}, {"prompt": "Count to 1:"}]),
        AutoTokenizer.from_pretrained(tiny),
        callbacks=[Watch],
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]),
    )
    trainer.train()
    assert seen == ["0: True", "1: True"]
    parts = trainer.experiment.parts
    assert len(parts.prompts.heldout) == 2 and len(parts.prompts.train) == 8
    row = trainer.state.log_history[-1]
    assert row["sample/reward_mean"] == pytest.approx(0.5 * row["sample/reward/long"])
    trainer.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter_config.json").exists() or parts.recipe.rounds  # round 0 may be the best


def test_lengths_are_those_of_a_grpo_run() -> None:
    one = RAFTConfig(output_dir="x", num_generations=4, per_device_train_batch_size=8, gradient_accumulation_steps=4)
    assert one.batch_size == 32 and one.prompts_of_a_round(1000) == 64 and one.prompts_of_a_round(10) == 10
    assert one.rounds_over(1000) == 47  # three passes over 1000 prompts, 64 at a time
    assert RAFTConfig(output_dir="x", num_train_epochs=1).rounds_over(128) == 2
    steps = RAFTConfig(output_dir="x", max_steps=100, num_generations=4, per_device_train_batch_size=32)
    assert steps.rounds_over(10_000) == 13  # 100 steps of 8 prompts
    assert RAFTConfig(output_dir="x", rounds=7).rounds_over(9) == 7


def test_what_means_nothing_is_said(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "raftune"):
        RAFTTrainer(str(tiny), long, config(tmp_path, epsilon=0.2, label_smoothing_factor=0.1), asked())
    assert "epsilon" in caplog.text and "label_smoothing_factor" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "raftune"):
        RAFTTrainer(str(tiny), long, config(tmp_path), asked())
    assert caplog.text == ""


def test_faults_are_told(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lr_scheduler_type: inverse_sqrt"):
        config(tmp_path, lr_scheduler_type="inverse_sqrt").recipe(8)
    with pytest.raises(UserError, match="3 weights for 1"):
        RAFTTrainer(str(tiny), long, config(tmp_path, reward_weights=[1.0, 1.0, 1.0]), asked())
    with pytest.raises(UserError, match="row 0 has no column `prompt`; it has text"):
        RAFTTrainer(str(tiny), long, config(tmp_path), Dataset.from_list([{"text": "x"}]))
    with pytest.raises(UserError, match="train_dataset"):
        RAFTTrainer(str(tiny), long, config(tmp_path))
    nameless = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny))
    nameless.name_or_path = ""
    with pytest.raises(UserError, match="processing_class"):
        _ = RAFTTrainer(nameless, long, config(tmp_path), asked()).experiment


def test_every_argument_of_grpo_is_known() -> None:
    """What TRL's own configuration takes, ours takes, or the list says that it does not."""
    trl = pytest.importorskip("trl")
    from dataclasses import fields

    ours = {one.name for one in fields(RAFTConfig)}
    for config in (trl.GRPOConfig, trl.RLOOConfig):
        assert {one.name for one in fields(config)} <= ours
    assert not set(OF_OTHERS) & set(RAFTConfig.__annotations__)
