"""RAFTTrainer: the loop behind the interface of TRL's trainers. A GRPO script becomes a RAFT script by two names."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, TrainerControl, TrainerState, trainer_pt_utils
from transformers.trainer_utils import TrainOutput

from . import handover, trainer_inputs, trainer_log
from .errors import UserError
from .experiment import Experiment
from .figures import said_of
from .models import device, load_model, load_tokenizer
from .prompts import fallen, parse, tidy
from .share.base import hub_id
from .trainer_config import RAFTConfig

log = logging.getLogger("raftune")

Function = Callable[..., Any]
Datasets = Any  # a datasets.Dataset, a streaming one, or rows; to evaluate on also several by name


class RAFTTrainer:
    """Reward-ranked fine-tuning with the arguments of TRL's ``GRPOTrainer``.

    ``model``: a folder, a hub id, or a model in memory, also one with an adapter of peft. ``reward_funcs``: functions
    with TRL's signature, sequence classifiers by folder, id or in memory, or rewards of raftune; several are summed by
    ``args.reward_weights``. ``train_dataset``: rows with a column ``prompt`` (a text or messages); other columns reach
    the functions; of a stream as many are taken as the run goes through. ``eval_dataset``: prompts that tell the best
    round, of several by name the first; by default some of the training ones are kept out (``args.heldout``).
    ``peft_config``: a LoraConfig; of it r, lora_alpha, lora_dropout and target_modules. ``callbacks``: told of rounds
    as of steps, with ``model`` None, since the policy lies on disk. An optimiser of one's own, quantisation, tools,
    rollouts and environments are refused.

    All lies in ``args.output_dir``, a run directory of raftune: candidates, figures, report.html, and it resumes. What
    functions say by ``log_metric`` stands in metrics.jsonl as ``logged/…``, by ``log_extra`` in a round's extra.json.
    """

    log_metrics = trainer_pt_utils.log_metrics
    save_metrics = trainer_pt_utils.save_metrics
    save_state = trainer_pt_utils.save_state

    def __init__(
        self,
        model: str | Path | PreTrainedModel | Any,
        reward_funcs: Function | str | PreTrainedModel | Sequence[Any] | None = None,
        args: RAFTConfig | None = None,
        train_dataset: Datasets = None,
        eval_dataset: Datasets = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
    ) -> None:
        asked = {"quantization_config": quantization_config, "tools": tools, "rollout_func": rollout_func}
        asked |= {"environment_factory": environment_factory, "optimizers": any(optimizers)}
        if refused := [name for name, value in asked.items() if value]:
            raise UserError(f"{refused[0]}: is not there; leave it out")
        self.args = args or RAFTConfig(output_dir=f"{trainer_inputs.name_of(model)}-RAFT")
        if not isinstance(self.args, RAFTConfig):
            raise UserError(f"args: is a {type(args).__name__}; write RAFTConfig instead, it takes the same arguments")
        if self.args.use_cpu and device().type != "cpu":
            raise UserError(f"use_cpu: this machine computes on {device().type}; start it with CUDA_VISIBLE_DEVICES=''")
        if unused := self.args.unused():
            log.warning("RAFTConfig: %s: set, and without a meaning here", ", ".join(unused))
        self.folder = Path(str(self.args.output_dir))
        self.state, self.control = TrainerState(), TrainerControl()
        self.callbacks: list[Any] = []
        self.eval_dataset, self._sets = eval_dataset, None
        if eval_dataset is not None:
            self._sets = trainer_inputs.sets(eval_dataset)
        self.train_dataset, self._prompts = train_dataset, self._rows(train_dataset)
        self._model, self._processing_class = model, processing_class
        self._journal = trainer_log.Journal(lambda: self.experiment.run.last)
        told = {"trainer_state": self.state, "log_metric": self._journal.metric, "log_extra": self._journal.extra}
        self._rewards, self._named = trainer_inputs.rewards(
            reward_funcs, self.args.reward_weights, reward_processing_classes, told, self.folder / handover.FOLDER
        )
        self._lora = trainer_inputs.lora(peft_config, model)
        for one in callbacks or ():
            self.add_callback(one)
        self._tell("on_init_end")

    def _rows(self, dataset: Datasets) -> list[dict[str, Any]]:
        if dataset is None:
            raise UserError("train_dataset: is needed; its column `prompt` is what is answered")
        return trainer_inputs.rows(dataset, "train_dataset", None if hasattr(dataset, "__len__") else self._needed())

    def _needed(self) -> int:
        """How many rows of a stream a run goes through, with those that are held out."""
        held, most = self.args.heldout or handover.HELDOUT, self.args.prompts_over()
        if self._sets is not None:
            return most
        return most + int(held) if held >= 1 else math.ceil(most / (1 - held))

    @cached_property
    def experiment(self) -> Experiment:
        """The recipe that the arguments make, and its run directory."""
        args, held = self.args, self.args.heldout
        also: dict[str, Any] = {}
        if self._sets is not None:
            (_, held), *others = self._sets.items()
            for name, rows in others:
                path = handover.written(self.folder / handover.FOLDER / f"eval-{name}.jsonl", rows)
                also[name] = {"path": str(path.resolve()), "k": args.num_generations_eval or 1}
        prompts = handover.prompts(self.folder, self._prompts, held)
        prompts |= {} if args.max_prompt_length is None else {"max_tokens": args.max_prompt_length}
        where = self.folder / handover.FOLDER / "model"
        model = trainer_inputs.start(self._model, self._processing_class, where)

        def recipe(train: int) -> dict[str, Any]:
            made = args.recipe(train) | {"model": model, "prompts": prompts, "reward": self._named}
            made["tune"] |= {} if self._lora is None else {"lora": self._lora}
            made["evaluate"] |= {"also": also} if also else {}
            return made

        return handover.experiment(recipe, "RAFTConfig", self.folder, self._rewards)

    @property
    def _sections(self) -> dict[str, str]:
        """Of evaluation sets that came by name, where their figures stand: the first tells the best round."""
        if not isinstance(self.eval_dataset, Mapping):
            return {}
        return {name: name if place else trainer_log.HELD for place, name in enumerate(self.eval_dataset)}

    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """The rounds that remain; what is in the output directory already is not done again, whatever
        ``resume_from_checkpoint`` says. The figures of each round are in ``state.log_history``, also by TRL's names."""
        del resume_from_checkpoint, trial, ignore_keys_for_eval
        experiment, rounds = self.experiment, self.experiment.parts.recipe.rounds
        with experiment.run:
            if dropped := fallen(experiment.parts.prompts.counts):
                log.warning("prompts dropped: %s", dropped)
            self.state.log_history, self.state.max_steps = [], rounds
            self.state.num_train_epochs = int(self.args.num_train_epochs)
            self._tell("on_train_begin")
            for row in experiment.rounds():
                self._note(experiment, row["round"])
                if self.control.should_training_stop:
                    break
            self._tell("on_train_end")
        losses = [row["tune/loss"] for row in self.state.log_history if "tune/loss" in row]
        last = self.state.log_history[-1]
        metrics = {key: float(value) for key, value in last.items() if isinstance(value, int | float)}
        metrics["train_loss"] = losses[-1] if losses else float("nan")
        metrics["train_runtime"] = sum(row.get("time/round_s", 0.0) for row in self.state.log_history)
        if self.args.push_to_hub:
            self.push_to_hub()
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)

    def _note(self, experiment: Experiment, number: int) -> None:
        """A round is done: its figures into the log, and whoever listens is told."""
        run, recipe, prompts = experiment.run, experiment.parts.recipe, experiment.parts.prompts.train
        self._journal.write(run, number)
        self.state.global_step = number
        self.state.epoch = number * recipe.sample.prompts_per_round / len(prompts)
        logs = trainer_log.as_trl(run.metrics(number), self._sections)
        self.state.log_history.append({"step": number, "epoch": self.state.epoch, **logs})
        self._tell("on_log", logs=logs)
        if "eval_reward" in logs:
            self._tell("on_evaluate", metrics=trainer_log.evaluated(logs, self._sections))
            best = run.metrics(run.best())  # afterwards, as transformers' trainer does
            self.state.best_metric, self.state.best_global_step = best["heldout/reward_mean"], best["round"]
        if number:
            for event in ("on_save", "on_step_end", "on_epoch_end"):
                self._tell(event)

    def _tell(self, event: str, **told: Any) -> None:
        told |= {"model": None, "processing_class": self._processing_class}
        for one in self.callbacks:
            self.control = getattr(one, event)(self.args, self.state, self.control, **told) or self.control

    def add_callback(self, callback: Any) -> None:
        """A ``transformers.TrainerCallback``, or its class."""
        self.callbacks.append(callback() if isinstance(callback, type) else callback)

    def remove_callback(self, callback: Any) -> None:
        """This one, or all of this class; where it is not there nothing happens."""
        gone = callback if isinstance(callback, type) else ()
        self.callbacks = [one for one in self.callbacks if one is not callback and not isinstance(one, gone)]

    @property
    def policy(self) -> str:
        """Where the policy of the last round lies; with ``load_best_model_at_end`` that of the best one."""
        return str(self.experiment.run.policy_of(self._number))

    @property
    def _number(self) -> int:
        run = self.experiment.run
        return run.best() if self.args.load_best_model_at_end else run.last

    @cached_property
    def processing_class(self) -> Any:
        """The tokenizer."""
        return self._processing_class or load_tokenizer(self.policy)

    @property
    def model(self) -> PreTrainedModel:
        """The policy, loaded in the precision of its file, an adapter merged into its base."""
        import torch

        return load_model(self.policy, torch.float32)

    def evaluate(
        self, eval_dataset: Datasets = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The held-out figures of the last round, as ``eval_<figure>`` and by TRL's names; with an ``eval_dataset`` (or
        several by name, ``eval_<name>_…``) those of :attr:`policy` on its prompts."""
        del ignore_keys
        experiment, found = self.experiment, dict[str, float]()
        if eval_dataset is None:
            experiment.complete(experiment.run.last)
            self._journal.write(experiment.run, experiment.run.last)
            row = experiment.run.metrics(experiment.run.last)
            return trainer_log.evaluated(row, self._sections, f"{metric_key_prefix}_")
        for name, rows in trainer_inputs.sets(eval_dataset).items():
            prefix = f"{metric_key_prefix}_{name}_" if isinstance(eval_dataset, Mapping) else f"{metric_key_prefix}_"
            found |= trainer_log.evaluated(self._measured(rows), prefix=prefix)
        return found

    def _measured(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Figures of what the policy answers to these prompts."""
        parts, recipe = self.experiment.parts, self.experiment.parts.recipe
        usable, _ = tidy(parse((f"eval_dataset row {place}", row) for place, row in enumerate(rows)))
        if not usable:
            raise UserError("eval_dataset: has no usable prompt")
        policy = self.policy
        scored = parts.rewards(parts.sampler.sample(policy, usable, recipe.evaluate.k, (recipe.seed, "heldout")))
        figures = parts.modality.appraise(scored, policy, parts.model, recipe.evaluate.reference)
        figures |= said_of(scored, None)
        told = self._journal.figures(self.experiment.run.last)
        self._journal.clear()
        return {f"heldout/{name}": value for name, value in figures.items()} | told

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the policy, as ``from_pretrained`` opens it, into ``output_dir``, by default ``args.output_dir``; with
        a card, where there is none of another's."""
        handover.save(self.experiment, self._number, Path(output_dir or self.folder), self._hub_id)

    @property
    def _hub_id(self) -> str | None:
        """What a model in memory is called on the Hub, where it came from there."""
        name = str(getattr(self._model, "name_or_path", "") or "")
        return hub_id(name) if name else None

    @property
    def hub_model_id(self) -> str:
        """The repository that :meth:`push_to_hub` writes to."""
        return self.args.hub_model_id or self.folder.resolve().name

    def push_to_hub(
        self,
        commit_message: str | None = "RAFT",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> str:
        """Upload the policy with its card to :attr:`hub_model_id`; its address. ``card``: what TRL's card is told;
        ours tells what the run knows."""
        if card:
            log.warning("push_to_hub: %s: not used, the card tells what the run knows", ", ".join(card))
        private = self.args.hub_private_repo if private is None else private
        access = {"token": token or self.args.hub_token, "private": private}
        options = {"message": commit_message or "RAFT", "revision": revision, "run_as_future": not blocking}
        return handover.push(self.experiment, self._number, self.hub_model_id, self._hub_id, **access, **options)

    @property
    def accelerator(self) -> PartialState:
        """What scripts ask of Accelerate: ``print``, ``is_main_process``, ``wait_for_everyone``."""
        return PartialState()

    def is_world_process_zero(self) -> bool:
        return True

    is_local_process_zero = is_world_process_zero

    def end(self) -> None:
        """Nothing is left open."""
