"""One run of TRL's GRPO or RLOO trainer on a task of ``peers.py``: raftune's prompts, raftune's reward, TRL's steps."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import machine
from paired import trl_options

from raftune import files
from raftune.errors import UserError
from raftune.score import Rewards
from raftune.types import Candidate, Prompt, Text

if TYPE_CHECKING:
    from peers import Task

ROWS = 48  # samples in the model at once, unless --rows
OWN = (
    "beta",
    "loss_type",
    "scale_rewards",
    "normalize_advantages",
    "num_iterations",
    "epsilon",
    "lr_scheduler_type",
    "weight_decay",
    "max_grad_norm",
    "gradient_checkpointing",
    "bf16",
    "per_device_train_batch_size",
)  # what a result tells of the trainer's configuration


def train_peer(task: Task) -> dict[str, Any]:
    """TRL's trainer on the same prompts, one optimiser step a step."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from raftune.models import load_tokenizer

    parts, steps = task.parts, [task.prompts(number) for number in range(1, task.steps + 1)]
    names = {"grpo": (trl.GRPOConfig, trl.GRPOTrainer), "rloo": (trl.RLOOConfig, trl.RLOOTrainer)}
    config_class, trainer_class = names[task.method]
    config = _configured(config_class, peer_options(task))
    rewards, means = training_reward(task.training_rewards, steps)
    watch = _watch(task, load_tokenizer(parts.model))
    rows = [{"prompt": _plain(prompt.content), "prompt_id": prompt.id} for step in steps for prompt in step]
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(parts.model, dtype=torch.float32),
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(parts.model),
        callbacks=[watch],
    )
    trainer.train()
    shutil.rmtree(config.output_dir, ignore_errors=True)
    return {
        "learning_rate": config.learning_rate,
        "samples": len(watch.ends) * len(steps[0]) * parts.recipe.sample.k,
        "step_seconds": [end - begin for begin, end in zip([0.0, *watch.ends], watch.ends, strict=False)],
        "sample_reward": means,
        "peak_bytes": int(machine.peak_gb() * 1024**3),
        "weights": watch.weights,
        "own": {key: _plain_value(getattr(config, key)) for key in OWN if hasattr(config, key)},
    }


def peer_options(task: Task) -> dict[str, Any]:
    """What the trainer is told; the rest stays as TRL has it."""
    recipe: Any = task.parts.recipe
    samples = recipe.sample.prompts_per_round * recipe.sample.k
    rows = task.rows or max(rows for rows in range(1, min(ROWS, samples) + 1) if samples % rows == 0)
    if samples % rows:
        raise UserError(f"--rows {rows}: does not divide the {samples} samples of a step")
    options = trl_options(str(task.out / "trl")) | {
        "max_steps": task.steps,
        "num_generations": recipe.sample.k,
        "max_completion_length": recipe.sample.max_new_tokens,
        "temperature": recipe.sample.temperature,
        "top_k": recipe.sample.top_k or 0,
        "top_p": recipe.sample.top_p or 1.0,
        "shuffle_dataset": False,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": samples // rows,  # TRL generates once for all of them
        "num_iterations": 1,
        "seed": recipe.seed,
    }
    del options["learning_rate"]
    given = {} if task.learning_rate is None else {"learning_rate": task.learning_rate}
    changes = (change.partition("=") for change in task.trl)
    return options | given | {key: _value(text) for key, _, text in changes}


def _value(text: str) -> Any:
    """``1e-5``, ``true`` and ``null`` as JSON has them; anything else is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _configured(config_class: Any, options: dict[str, Any]) -> Any:
    for key in options:
        if key not in config_class.__dataclass_fields__:
            raise UserError(f"--trl {key}: {config_class.__name__} has no such key")
    return config_class(**options)


def training_reward(
    rewards: Rewards, steps: Sequence[Sequence[Prompt]]
) -> tuple[Callable[..., list[float | None]], list[float | None]]:
    """raftune's rewards as TRL calls them, once a step, and the mean of each step so far.

    TRL hands over the texts, their token ids and the dataset's columns, one list each. Prompts that are not those of
    the step end the run: then the comparison would not be one.
    """
    means: list[float | None] = []

    def reward(
        completions: list[Any], completion_ids: list[list[int]], prompt_id: list[str], **_: object
    ) -> list[float | None]:
        prompts = {prompt.id: prompt for prompt in steps[len(means)]}
        if list(dict.fromkeys(prompt_id)) != list(prompts):
            raise RuntimeError(f"step {len(means) + 1}: TRL drew other prompts than the recipe")
        came: Counter[str] = Counter()
        candidates = []
        for key, completion, ids in zip(prompt_id, completions, completion_ids, strict=True):
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            candidates.append(Candidate(prompts[key], came[key], Text(text, tuple(ids))))
            came[key] += 1
        values = [one.reward for one in rewards(candidates)]
        known = [value for value in values if value is not None]
        means.append(sum(known) / len(known) if known else None)
        return values

    return reward, means


def _plain(content: Any) -> Any:
    return content if isinstance(content, str) else [dict(turn) for turn in content]


def _plain_value(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _watch(task: Task, tokenizer: Any) -> Any:
    """A trainer callback: when each step ended, on a clock that stands still while weights are saved for evaluation."""
    from transformers import TrainerCallback

    from raftune.models import quiet

    class Watch(TrainerCallback):
        ends: list[float]
        weights: dict[int, str]

        def on_train_begin(self, *args: object, **kwargs: object) -> None:
            self.ends, self.weights, self.begin = [], {}, machine.clock()

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: object) -> None:
            now = machine.clock()
            self.ends.append(now - self.begin)
            late = task.is_late(self.ends[-1])
            if late or task.is_mark(state.global_step):
                folder = task.out / "weights" / f"{state.global_step:04d}"
                with files.replacing_folder(folder) as part, quiet():
                    model.save_pretrained(part)
                    tokenizer.save_pretrained(part)
                self.weights[state.global_step] = str(folder.relative_to(task.out))
                if task.arrived(state.global_step, str(folder)):
                    control.should_training_stop = True
                if task.until is not None and task.is_mark(state.global_step):
                    shutil.rmtree(folder)  # evaluated
            control.should_training_stop |= late
            self.begin += machine.clock() - now

    return Watch()
