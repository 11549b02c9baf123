"""What a script of TRL's users does around the trainer: each is held against TRL's own classes."""

from __future__ import annotations

import inspect
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EarlyStoppingCallback,
    HfArgumentParser,
    TrainerCallback,
)

from raftune import RAFTConfig, RAFTTrainer, UserError

# As TRL's documentation writes them: a conversation, further columns, an asynchronous function, one for some rows only,
# what functions may log, a callback, figures and files afterwards
SCRIPT = '''
import json
import sys
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

model_id, output_dir = sys.argv[1:]
told, events = {}, []

def format_reward_func(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric, **kwargs):
    """Reward function that checks if the completion has a specific format."""
    told["kwargs"] = sorted(kwargs)
    told["answer"] = [sorted(set(answer)), len(answer) == len(completions) == len(prompts)]
    told["prompt"] = [[turn["role"] for turn in prompts[0]], prompts[0][-1]["content"][:3]]
    told["completion"] = [[sorted(turn) for turn in completions[0]], completions[0][0]["role"]]
    told["ids"] = [type(completion_ids).__name__, type(completion_ids[0]).__name__, type(completion_ids[0][0]).__name__]
    told["state"] = [type(trainer_state).__name__, trainer_state.max_steps, trainer_state.global_step >= 0]
    log_extra("golden_answer", list(answer))
    log_metric("accuracy", 0.25)
    contents = [completion[0]["content"] for completion in completions]
    return [sum(letter.isalpha() for letter in content) / (len(content) + 1) for content in contents]

async def brief_reward_func(completions, **kwargs):
    return [-float(len(completion[0]["content"])) / 100 for completion in completions]

def maths_reward_func(completions, task, **kwargs):
    return [1.0 if one == "maths" else None for one in task]

class Listener(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        events.append("begin")

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        events.append("evaluate") if "eval_reward" in metrics else None

    def on_train_end(self, args, state, control, **kwargs):
        events.append("end")

def rows(word, count):
    return Dataset.from_list([
        {"prompt": [{"role": "user", "content": f"{word} {n}"}], "answer": "4", "task": "maths" if n % 2 else "prose"}
        for n in range(count)
    ])

training_args = GRPOConfig(
    output_dir=output_dir, max_steps=1, num_generations=2, num_generations_eval=2, per_device_train_batch_size=4,
    per_device_eval_batch_size=4, max_completion_length=5, eval_strategy="steps", eval_steps=1, logging_steps=1,
    learning_rate=1e-3, lr_scheduler_type="cosine", report_to="none", use_cpu=True, bf16=False, save_strategy="no",
)
trainer = GRPOTrainer(
    model=model_id,
    reward_funcs=[format_reward_func, brief_reward_func, maths_reward_func],
    args=training_args,
    train_dataset=rows("Say", 8),
    eval_dataset=rows("Sum", 4),
    callbacks=[Listener],
)
result = trainer.train(resume_from_checkpoint=None)
trainer.log_metrics("train", {"train_loss": result.training_loss})
trainer.save_metrics("train", result.metrics)
trainer.save_state()
metrics = trainer.evaluate()
trainer.save_model(training_args.output_dir)
trainer.accelerator.print("Model saved to", training_args.output_dir)
if trainer.is_world_process_zero():
    keys = {key for row in trainer.state.log_history for key in row}
    print("FOUND " + json.dumps({"told": told, "events": sorted(set(events)), "keys": sorted(keys),
                                 "metrics": sorted(metrics)}))
'''
READ = {  # what those who plot a run read of it
    *("step", "epoch", "loss", "reward", "rewards/format_reward_func/mean", "rewards/maths_reward_func/mean"),
    *("completions/mean_length", "completions/clipped_ratio", "accuracy", "eval_reward", "eval_accuracy"),
    "eval_rewards/brief_reward_func/mean",
}


def found_by(script: str, *arguments: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])


def test_a_script_of_the_documentation_by_two_names(tiny: Path, tmp_path: Path) -> None:
    """TRL's own run says what functions are given and what a log holds."""
    pytest.importorskip("trl")
    ours = SCRIPT.replace("from trl import", "from raftune import")
    ours = ours.replace("GRPOConfig", "RAFTConfig").replace("GRPOTrainer", "RAFTTrainer")
    theirs, found = found_by(SCRIPT, tiny, tmp_path / "grpo"), found_by(ours, tiny, tmp_path / "raft")
    assert found["told"] == theirs["told"]
    assert found["events"] == theirs["events"] == ["begin", "end", "evaluate"]
    assert set(theirs["keys"]) >= READ
    assert set(found["keys"]) >= READ
    assert {"eval_reward", "eval_rewards/brief_reward_func/mean"} <= set(theirs["metrics"]) & set(found["metrics"])
    start = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    for folder in ("grpo", "raft"):
        AutoTokenizer.from_pretrained(tmp_path / folder)
        tuned = AutoModelForCausalLM.from_pretrained(tmp_path / folder).state_dict()
        assert tuned.keys() == start.keys()
        assert any(not torch.equal(tuned[key], start[key]) for key in start)
        assert (tmp_path / folder / "trainer_state.json").exists()
    extra = json.loads((tmp_path / "raft" / "rounds" / "0001" / "extra.json").read_text())
    assert set(extra["golden_answer"]) == {"4"} and (len(extra["golden_answer"]), len(extra["eval_golden_answer"])) == (
        16,
        8,
    )


def test_checkpointing_by_either_name(tmp_path: Path) -> None:
    args = config(tmp_path, activation_checkpointing=True)
    assert args.recipe(8)["tune"]["gradient_checkpointing"] and args.unused() == []


def test_the_signature_is_trls() -> None:
    """By place and by name."""
    trl = pytest.importorskip("trl")
    theirs, ours = (inspect.signature(one.__init__).parameters for one in (trl.GRPOTrainer, RAFTTrainer))
    assert list(ours) == list(theirs)
    for name in ("train", "evaluate", "save_model", "push_to_hub"):
        theirs, ours = (inspect.signature(getattr(one, name)).parameters for one in (trl.GRPOTrainer, RAFTTrainer))
        given = [key for key in theirs if not key.startswith("_") and key != "kwargs"]
        assert [key for key in ours if key in given] == given, name


def test_a_command_line_makes_the_arguments() -> None:
    """By transformers' parser and by TRL's, with flags that mean nothing here."""
    trl = pytest.importorskip("trl")
    line = ["--output_dir", "x", "--num_generations", "4", "--epsilon", "0.2", "--mask_truncated_completions"]
    line += ["--lr_scheduler_type", "cosine", "--reward_weights", "1", "0.5", "--heldout", "3"]
    (args,) = HfArgumentParser(RAFTConfig).parse_args_into_dataclasses(line)  # pyright: ignore[reportArgumentType]
    assert (args.num_generations, args.reward_weights, args.heldout) == (4, [1.0, 0.5], 3)
    assert args.unused() == ["mask_truncated_completions", "epsilon"]
    _, args, model = trl.TrlParser((trl.ScriptArguments, RAFTConfig, trl.ModelConfig)).parse_args_and_config(
        ["--model_name_or_path", "m", "--dataset_name", "d", *line]
    )
    assert args.recipe(8)["tune"]["schedule"] == "cosine" and model.model_name_or_path == "m"


def config(folder: Path, **given: Any) -> RAFTConfig:
    asked = {"num_generations": 3, "per_device_train_batch_size": 4, "max_completion_length": 5, "report_to": "none"}
    return RAFTConfig(
        output_dir=str(folder), **{**asked, "rounds": 1, "prompts_per_round": 3, "use_cpu": True, **given}
    )


def asked(count: int = 8, word: str = "Count to") -> Dataset:
    return Dataset.from_list([{"prompt": f"{word} {i}:"} for i in range(count)])


def long(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_a_classifier_in_memory_scores_as_it_does_alone(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    trainer = RAFTTrainer(
        str(tiny),
        [classifier, long, long],
        config(tmp_path / "run"),
        asked(),
        reward_processing_classes=[tokenizer] * 3,
    )
    trainer.train()
    names = [one.reward.name for one in trainer.experiment.parts.rewards.members]
    assert names == [tiny.name, "long", "long_3"]
    one = trainer.experiment.evaluated(1)[0]
    ids = tokenizer(str(one.candidate.prompt.content) + one.candidate.output.text, return_tensors="pt")
    with torch.inference_mode():
        alone = float(classifier.eval()(**ids).logits[0, 0])
    assert one.parts[tiny.name] == pytest.approx(alone, rel=1e-4)


def test_an_adapter_in_memory_is_gone_on_with(tiny: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny)
    start = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    trainer = RAFTTrainer(start, long, config(tmp_path / "run", learning_rate=1e-2), asked())
    trainer.train()
    lora = trainer.experiment.parts.recipe.tune.model_dump()["lora"]
    assert (lora["r"], lora["alpha"], list(lora["target_modules"])) == (2, 6, ["q_proj"])
    trainer.save_model(tmp_path / "saved")
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), tmp_path / "saved")
    kept = {key: value for key, value in start.state_dict().items() if "lora_A" in key}
    assert kept and all(tuned.state_dict()[key].shape == value.shape for key, value in kept.items())


def test_modules_that_peft_takes_by_itself(tiny: Path, tmp_path: Path) -> None:
    trainer = RAFTTrainer(str(tiny), long, config(tmp_path / "run"), asked(), peft_config=LoraConfig(r=4))
    usual = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=4))
    lora = trainer.experiment.parts.recipe.tune.model_dump()["lora"]
    assert set(lora["target_modules"]) == set(usual.peft_config["default"].target_modules)
    for wrong in (LoraConfig(use_dora=True), LoraConfig(modules_to_save=["lm_head"])):
        with pytest.raises(UserError, match="peft_config.(use_dora|modules_to_save)"):
            RAFTTrainer(str(tiny), long, config(tmp_path / "other"), asked(), peft_config=wrong)


def test_another_tokenizer_than_the_models_own(tiny: Path, tmp_path: Path) -> None:
    """A chat template that the script sets reaches the policy and stays with it; the model's folder is as it was."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert RAFTTrainer(str(tiny), long, config(tmp_path / "a"), asked(), processing_class=tokenizer).policy == str(tiny)
    tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    trainer = RAFTTrainer(str(tiny), long, config(tmp_path / "b"), asked(), processing_class=tokenizer)
    trainer.train()
    assert AutoTokenizer.from_pretrained(trainer.policy).chat_template == tokenizer.chat_template
    assert AutoTokenizer.from_pretrained(tiny).chat_template != tokenizer.chat_template


def test_a_stream_gives_what_the_run_goes_through(tiny: Path, tmp_path: Path) -> None:
    taken: list[int] = []

    def rows() -> Iterator[dict[str, str]]:
        for number in range(10_000):
            taken.append(number)
            yield {"prompt": f"Say {number}:"}

    stream = IterableDataset.from_generator(rows)
    with pytest.raises(UserError, match="max_steps: is needed"):
        RAFTTrainer(str(tiny), long, config(tmp_path / "x", rounds=None), stream)
    args = config(tmp_path / "run", rounds=None, max_steps=4, num_generations=2, heldout=2)  # 4 steps of 2 prompts
    parts = RAFTTrainer(str(tiny), long, args, stream).experiment.parts
    assert (len(parts.prompts.train), len(parts.prompts.heldout), len(taken)) == (8, 2, 10)
    assert parts.recipe.rounds == 3  # of 3 prompts


def test_several_sets_to_evaluate_on(tiny: Path, tmp_path: Path) -> None:
    sets = {"near": asked(3), "far": asked(2, "Sing")}
    trainer = RAFTTrainer(str(tiny), long, config(tmp_path / "run"), asked(), sets)
    first = trainer.evaluate()  # before anything was trained
    assert {"eval_near_reward", "eval_far_reward", "eval_rewards/long/mean"} <= first.keys()
    assert first["eval_reward"] == first["eval_near_reward"] == first["eval_reward_mean"]
    trainer.train()
    found = trainer.evaluate(sets)
    assert found["eval_far_reward"] == trainer.evaluate()["eval_far_reward"]  # the same draws of the same policy
    assert found["eval_near_reward"] == trainer.evaluate(asked(3), metric_key_prefix="test")["test_reward"]


def test_callbacks_can_end_a_run(tiny: Path, tmp_path: Path) -> None:
    class Enough(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.global_step == 2
            return control

    trainer = RAFTTrainer(str(tiny), long, config(tmp_path / "run", rounds=5), asked(), callbacks=[Enough()])
    assert trainer.train().global_step == 2

    def flat(completions: list[str], **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    early = config(
        tmp_path / "early",
        rounds=6,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        eval_strategy="epoch",
        save_strategy="epoch",
    )
    trainer = RAFTTrainer(str(tiny), flat, early, asked(), callbacks=[EarlyStoppingCallback(2)])
    assert trainer.train().global_step < 6  # nothing gets better
    trainer.remove_callback(EarlyStoppingCallback)
    assert trainer.callbacks == []
    trainer.save_model(tmp_path / "saved")  # the best is round 0, the initial model
    AutoModelForCausalLM.from_pretrained(tmp_path / "saved")


def test_what_is_not_there_is_refused(tiny: Path, tmp_path: Path) -> None:
    from trl import GRPOConfig

    known: dict[str, Any] = {"args": config(tmp_path), "train_dataset": asked()}
    for name, value in (
        ("tools", [len]),
        ("rollout_func", len),
        ("environment_factory", object),
        ("quantization_config", object()),
        ("optimizers", (object(), None)),
    ):
        with pytest.raises(UserError, match=f"{name}: is not there"):
            RAFTTrainer(str(tiny), long, **known, **{name: value})
    with pytest.raises(UserError, match="write RAFTConfig instead"):
        theirs: Any = GRPOConfig(output_dir="x", use_cpu=True, bf16=False, activation_checkpointing=False)
        RAFTTrainer(str(tiny), long, theirs, asked())
    with pytest.raises(UserError, match="reward_funcs: is needed"):
        RAFTTrainer(str(tiny), [], **known)
    with pytest.raises(UserError, match="optim: adafactor"):
        config(tmp_path, optim="adafactor").recipe(8)
    with pytest.raises(UserError, match="max_completion_length"):
        config(tmp_path, max_completion_length=None).recipe(8)


def test_prompts_that_cannot_be_used_do_not_end_it(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that are there twice leave fewer than a round would like to have."""
    rows = [{"prompt": f"Say {i % 4}"} for i in range(12)]
    args = config(tmp_path / "run", prompts_per_round=None, heldout=1)
    with caplog.at_level(logging.WARNING, "raftune"):
        trainer = RAFTTrainer(str(tiny), long, args, rows)
        trainer.train()
    assert trainer.experiment.parts.recipe.sample.prompts_per_round == 3
    assert "prompts dropped: 8 duplicate" in caplog.text


def test_a_server_of_vllm_by_host_and_port() -> None:
    args = RAFTConfig(output_dir="x", use_vllm=True, vllm_mode="server", vllm_server_host="gpu", vllm_server_port=9)
    assert args.recipe(8)["sample"]["url"] == "http://gpu:9"
    here = RAFTConfig(output_dir="x", use_vllm=True, vllm_max_model_length=99).recipe(8)["sample"]
    assert here["vllm"]["max_model_len"] == 99 and here["backend"] == "vllm"


def test_what_is_pushed_is_the_policy(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked_for: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            asked_for["token"] = token

        def create_repo(self, name: str, **options: Any) -> SimpleNamespace:
            asked_for.update(options)
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, **options: Any) -> None:
            asked_for.update(options)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    trainer = RAFTTrainer(str(tiny), long, config(tmp_path / "run", hub_token="t"), asked())
    trainer.train()
    with caplog.at_level(logging.WARNING, "raftune"):
        trainer.push_to_hub(dataset_name="d")
    assert "dataset_name: not used" in caplog.text
    assert (asked_for["repo_id"], asked_for["repo_type"]) == ("me/run", "model")
    assert asked_for["token"] == "t"
    pushed = Path(asked_for["folder_path"])
    assert {path.name for path in pushed.iterdir()} >= {"config.json", "README.md"}
    assert not (pushed / "raftune.json").exists()
    for name in ("config.json", "model.safetensors"):
        assert (pushed / name).read_bytes() == (Path(trainer.policy) / name).read_bytes()


def test_no_generations_are_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    args = RAFTConfig(output_dir=str(tmp_path / "run"), num_generations=0, report_to="none")
    trainer = RAFTTrainer(
        model=str(tiny),
        reward_funcs=lambda completions, **columns: [0.0 for _ in completions],
        args=args,
        train_dataset=[{"prompt": f"p {number}"} for number in range(4)],
    )
    with pytest.raises(UserError, match="sample.k: should be greater than or equal to 1, got 0"):
        trainer.train()
