"""RAFTTrainer: the loop behind the interface of TRL's trainers. A GRPO script becomes a RAFT script by two names."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel, TrainerState
from transformers.trainer_utils import TrainOutput

from . import files, pick
from .build import Parts
from .errors import UserError
from .experiment import Experiment
from .models import load_model, load_tokenizer, quiet
from .report.record import Record
from .score import Rewards, Weighted
from .share.base import hub_id
from .share.policy import lay_out
from .share.push import Parcel, upload
from .trainer_config import RAFTConfig

log = logging.getLogger("raftune")

HELDOUT = 64  # prompts at most, where nobody says which
Function = Callable[..., Any]


class RAFTTrainer:
    """Reward-ranked fine-tuning with the arguments of TRL's ``GRPOTrainer``.

    ``model``: a folder, a hub id, or a model in memory (then also its ``processing_class``). ``reward_funcs``:
    functions with TRL's signature, sequence classifiers by folder or id, or rewards of raftune; several are summed by
    ``args.reward_weights``. ``train_dataset``: rows with a column ``prompt`` (a text or messages); other columns reach
    the functions. ``eval_dataset``: prompts that tell the best round; by default some of the training ones are kept out
    (``args.heldout``). ``peft_config``: a LoraConfig; of it r, lora_alpha, lora_dropout and target_modules.

    All lies in ``args.output_dir``, a run directory of raftune: candidates, figures, report.html, and it resumes.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        reward_funcs: Function | str | Sequence[Function | str],
        args: RAFTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] = (),
        peft_config: Any = None,
    ) -> None:
        if train_dataset is None:
            raise UserError("train_dataset: is needed; its column `prompt` is what is answered")
        self.args = args or RAFTConfig(output_dir=f"{_name(model)}-RAFT")
        if unused := self.args.unused():
            log.warning("RAFTConfig: %s: set, and without a meaning here", ", ".join(unused))
        self.folder = Path(str(self.args.output_dir))
        self.callbacks = [one() if isinstance(one, type) else one for one in callbacks]
        self.state = TrainerState()
        self._prompts = _rows(train_dataset)
        self._given = _rows(eval_dataset) if eval_dataset is not None else None
        self._model, self._processing_class = model, processing_class
        self._rewards, self._named = _rewards(reward_funcs, self.args.reward_weights)
        self._lora = None if peft_config is None else _lora(peft_config)

    @cached_property
    def experiment(self) -> Experiment:
        """The recipe that the arguments make, and its run directory."""
        from .recipe import parse

        asked = self.folder / ".trainer"  # what was handed over in memory, as files
        prompts: dict[str, Any] = {"path": str(_written(asked / "prompts.jsonl", self._prompts).resolve())}
        heldout: Any = self.args.heldout or min(HELDOUT, max(1, len(self._prompts) // 10))
        train = len(self._prompts) - (heldout if isinstance(heldout, int) else int(heldout * len(self._prompts)))
        if self._given is not None:
            heldout = str(_written(asked / "heldout.jsonl", self._given).resolve())
            train = len(self._prompts)
        prompts |= {"heldout": heldout, "disjoint": self._given is None}
        prompts |= {} if self.args.max_prompt_length is None else {"max_tokens": self.args.max_prompt_length}
        recipe = self.args.recipe(train) | {"model": self._start(asked), "prompts": prompts, "reward": self._named}
        recipe["tune"] |= {} if self._lora is None else {"lora": self._lora}
        parts = Parts(parse(recipe, "RAFTConfig"), folder=self.folder, given=self._rewards)
        return Experiment.open(parts, self.folder)

    def _start(self, asked: Path) -> str:
        """The initial policy as a place on disk: weights are a value here."""
        if not isinstance(self._model, PreTrainedModel):
            return str(self._model)
        if self._processing_class is None:
            raise UserError("processing_class: is needed beside a model in memory")
        where = asked / "model"
        if not where.exists():
            with files.replacing_folder(where) as part, quiet():
                self._model.save_pretrained(part)
                self._processing_class.save_pretrained(part)
        return str(where.resolve())

    def train(self, resume_from_checkpoint: Any = None) -> TrainOutput:
        """The rounds that remain; what is in the output directory already is not done again, whatever
        ``resume_from_checkpoint`` says. The figures of each round are in ``state.log_history``."""
        del resume_from_checkpoint
        experiment, rounds = self.experiment, self.experiment.parts.recipe.rounds
        with experiment.run:
            self.state.log_history, self.state.max_steps = [], rounds
            self._tell("on_train_begin")
            for row in experiment.rounds():
                self.state.global_step, self.state.epoch = row["round"], row["round"] / rounds
                self.state.log_history.append({"step": row["round"], **row})
                self._tell("on_log", logs=row)
                self._tell("on_step_end")
            self._tell("on_train_end")
        losses = [row["tune/loss"] for row in self.state.log_history if "tune/loss" in row]
        last = self.state.log_history[-1]
        metrics = {key: float(value) for key, value in last.items() if isinstance(value, int | float)}
        if self.args.push_to_hub:
            self.push_to_hub()
        return TrainOutput(self.state.global_step, losses[-1] if losses else float("nan"), metrics)

    def _tell(self, event: str, **told: Any) -> None:
        from transformers import TrainerControl

        for one in self.callbacks:
            getattr(one, event)(self.args, self.state, TrainerControl(), **told)

    @property
    def policy(self) -> str:
        """Where the policy of the last round lies; with ``load_best_model_at_end`` that of the best one."""
        run = self.experiment.run
        return str(run.policy_of(run.best() if self.args.load_best_model_at_end else run.last))

    @cached_property
    def processing_class(self) -> Any:
        """The tokenizer."""
        return self._processing_class or load_tokenizer(self.policy)

    @property
    def model(self) -> PreTrainedModel:
        """The policy, loaded in the precision of its file, an adapter merged into its base."""
        import torch

        return load_model(self.policy, torch.float32)

    def evaluate(self) -> dict[str, float]:
        """The held-out figures of the last round that was evaluated, as ``eval_<figure>``."""
        rows = [row for row in self.experiment.run.history() if "heldout/reward_mean" in row]
        if not rows:
            raise UserError("evaluate: nothing was evaluated yet; call train()")
        held = {key.removeprefix("heldout/"): value for key, value in rows[-1].items() if key.startswith("heldout/")}
        return {f"eval_{name}": value for name, value in held.items() if isinstance(value, int | float)}

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the policy, as ``from_pretrained`` opens it, into ``output_dir``, by default ``args.output_dir``; with
        a card, where there is none of another's."""
        self._lay_out(Path(output_dir or self.folder))

    def _lay_out(self, target: Path) -> None:
        run = self.experiment.run
        number = run.best() if self.args.load_best_model_at_end else run.last
        for line in lay_out(Record.of(self.folder), number, run.policy_of(number), target, base=self._hub_id):
            log.warning("%s: %s", target, line)

    @property
    def _hub_id(self) -> str | None:
        """What a model in memory is called on the Hub, where it came from there."""
        name = str(getattr(self._model, "name_or_path", "") or "")
        return hub_id(name) if name else None

    def push_to_hub(self, commit_message: str = "RAFT", **options: Any) -> str:
        """Upload the policy with its card to ``args.hub_model_id`` (by default the output directory's name); its
        address. ``options``: of ``HfApi.upload_folder``."""
        name = self.args.hub_model_id or self.folder.resolve().name
        with TemporaryDirectory(dir=self.folder, prefix=".hub-") as ready:
            self._lay_out(Path(ready))
            parcel = Parcel(Path(ready), "model")
            return upload(parcel, name, self.args.hub_private_repo, self.args.hub_token, commit_message, **options)


def _name(model: Any) -> str:
    return str(getattr(model, "name_or_path", "") or model).rstrip("/").rpartition("/")[2] or "model"


def _rows(dataset: Any) -> list[dict[str, Any]]:
    """Of a datasets.Dataset, or of a list of rows."""
    rows = [dict(row) for row in dataset]
    if not rows:
        raise UserError("dataset: has no row")
    for number, row in enumerate(rows):
        if "prompt" not in row:
            raise UserError(f"dataset: row {number} has no column `prompt`; it has {', '.join(row)}")
    return rows


def _written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with files.replacing(path) as part:
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _rewards(given: Any, weights: Sequence[float] | None) -> tuple[Rewards, list[dict[str, Any]]]:
    """The sum of the functions, and what the recipe says of it."""
    several = list(given) if isinstance(given, list | tuple) else [given]
    if weights is not None and len(weights) != len(several):
        raise UserError(f"reward_weights: {len(weights)} weights for {len(several)} reward_funcs")
    members, named = [], []
    for number, one in enumerate(several):
        weight = 1.0 if weights is None else weights[number]
        reward = pick.handed(one)
        members.append(Weighted(reward, weight))
        named.append({"use": f"given:{reward.name}", "name": reward.name, "weight": weight})
    return Rewards(tuple(members)), named


def _lora(config: Any) -> dict[str, Any]:
    """Of a peft.LoraConfig what a recipe's ``tune.lora`` says."""
    modules = config.target_modules
    if isinstance(modules, str) and modules != "all-linear":
        raise UserError(f"peft_config.target_modules: {modules!r}: give a list of names, or 'all-linear'")
    return {
        "r": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "target_modules": None if modules is None or isinstance(modules, str) else sorted(modules),
    }
