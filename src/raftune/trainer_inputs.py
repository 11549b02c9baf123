"""What is handed to the trainer in memory (datasets, models, rewards, adapters) as the loop takes it: rows, places,
recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from . import files, pick
from .errors import UserError
from .models import load_config, load_tokenizer, loading, locate, quiet
from .score import Rewards, Weighted

TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "chat_template", "vocab.", "merges.")  # its files begin so
OURS = {"r", "lora_alpha", "lora_dropout", "target_modules"}  # of a LoraConfig, what a recipe says
ASIDE = {  # and what changes nothing that is trained
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "fan_in_fan_out"),
}


def rows(dataset: Any, name: str, most: int | None = None) -> list[dict[str, Any]]:
    """Of a dataset, a streaming one or a list of rows; at most so many of them. UserError where one has no prompt."""
    found = [dict(row) for row in islice(dataset, most)]
    if not found:
        raise UserError(f"{name}: has no row")
    for number, row in enumerate(found):
        if "prompt" not in row:
            raise UserError(f"{name}: row {number} has no column `prompt`; it has {', '.join(row)}")
    return found


def sets(dataset: Any) -> dict[str, list[dict[str, Any]]]:
    """An ``eval_dataset`` by name: one that is not a mapping is called ``eval``."""
    named = dataset if isinstance(dataset, Mapping) else {"eval": dataset}
    found = {str(name): rows(one, f"eval_dataset {name}") for name, one in named.items()}
    if not found:
        raise UserError("eval_dataset: is empty; leave it out, or give at least one set")
    return found


def rewards(
    given: Any, weights: Sequence[float] | None, classes: Any, told: Mapping[str, Any], folder: Path
) -> tuple[Rewards, list[dict[str, Any]]]:
    """The sum of the functions and models, and what the recipe says of it.

    ``classes``: the tokenizers of classifiers in memory, one each; ``told``: what functions are given besides the
    columns; ``folder``: where classifiers in memory are put.
    """
    several = list(given) if isinstance(given, list | tuple) else [given]
    if not several or given is None:
        raise UserError("reward_funcs: is needed; a function, a classifier, or a list of them")
    if weights is not None and len(weights) != len(several):
        raise UserError(f"reward_weights: {len(weights)} weights for {len(several)} reward_funcs")
    tokenizers = list(classes) if isinstance(classes, list | tuple) else [classes] * len(several)
    if len(tokenizers) != len(several):
        raise UserError(f"reward_processing_classes: {len(tokenizers)} for {len(several)} reward_funcs")
    members: list[Weighted] = []
    for number, (one, tokenizer) in enumerate(zip(several, tokenizers, strict=True)):
        reward = pick.handed(_placed(one, tokenizer, folder / f"reward-{number}"), told)
        if isinstance(one, PreTrainedModel):
            reward = _called(reward, name_of(one))
        if sum(member.reward.name == reward.name for member in members):
            reward = _called(reward, f"{reward.name}_{number + 1}")
        members.append(Weighted(reward, 1.0 if weights is None else weights[number]))
    named = [{"use": f"given:{m.reward.name}", "name": m.reward.name, "weight": m.weight} for m in members]
    return Rewards(tuple(members)), named


def _placed(one: Any, tokenizer: Any, where: Path) -> Any:
    """A classifier in memory as a folder; anything else as it is."""
    return saved(one, tokenizer, where) if isinstance(one, PreTrainedModel) else one


def _called(reward: Any, name: str) -> Any:
    return replace(reward, name=name) if is_dataclass(reward) and not isinstance(reward, type) else reward


def name_of(model: Any) -> str:
    """The last part of a model's id or folder."""
    return str(getattr(model, "name_or_path", "") or model).rstrip("/").rpartition("/")[2] or "model"


def start(model: Any, processing_class: Any, where: Path) -> str:
    """The initial policy as a place on disk, since weights are a value here: what is in memory is saved ``where``, and
    so is a model that gets another tokenizer than its own."""
    if is_adapter(model) and not model.get_base_model().name_or_path:
        raise UserError("model: an adapter whose base was not loaded from anywhere; load it with from_pretrained")
    if isinstance(model, PreTrainedModel) or is_adapter(model):
        return saved(model, processing_class, where)
    if processing_class is None or _is_its_own(processing_class, str(model)):
        return str(model)
    if not where.exists():
        with files.replacing_folder(where) as part, quiet():
            processing_class.save_pretrained(part)
            for file in sorted(Path(_fetched(str(model))).iterdir()):
                if file.is_file() and not file.name.startswith(TOKENIZER):
                    (part / file.name).symlink_to(file.resolve())
    return str(where.resolve())


def _fetched(model: str) -> str:
    place = locate(model)
    if Path(place).is_dir():
        return place
    from huggingface_hub import snapshot_download

    return loading(place, lambda: snapshot_download(place))


def _is_its_own(tokenizer: Any, model: str) -> bool:
    """Does the model's own tokenizer read and write alike?"""
    own = load_tokenizer(model)
    return own.get_vocab() == tokenizer.get_vocab() and own.chat_template == tokenizer.chat_template


def saved(model: Any, processing_class: Any, where: Path) -> str:
    """A model in memory with its tokenizer, in a folder that is written once."""
    if processing_class is None and not model.name_or_path:
        raise UserError("processing_class: is needed beside a model that was not loaded from anywhere")
    if not where.exists():
        with files.replacing_folder(where) as part, quiet():
            model.save_pretrained(part)
            (processing_class or load_tokenizer(model.name_or_path)).save_pretrained(part)
    return str(where.resolve())


def is_adapter(model: Any) -> bool:
    """A base in memory with an adapter of peft around it?"""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def lora(config: Any, model: Any) -> dict[str, Any] | None:
    """Of a peft.LoraConfig what a recipe's ``tune.lora`` says, for this initial policy; an adapter's own where it is
    one. UserError for what would not be trained as it says."""
    from peft import LoraConfig
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    if is_adapter(model):
        if config is not None:
            raise UserError("peft_config: the model is an adapter already; leave it out")
        config = model.peft_config[model.active_adapter]
    if config is None:
        return None
    if not isinstance(config, LoraConfig):
        raise UserError(f"peft_config: {type(config).__name__} is not there; give a LoraConfig")
    usual, said = LoraConfig().to_dict(), config.to_dict()
    for key in sorted(said.keys() - OURS - ASIDE):
        if said[key] != usual.get(key):
            raise UserError(f"peft_config.{key}: {said[key]!r} is not there; leave it out")
    modules = config.target_modules
    if isinstance(modules, str) and modules != "all-linear":
        raise UserError(f"peft_config.target_modules: {modules!r}: give a list of names, or 'all-linear'")
    if modules is None:  # those that peft takes for this kind of model, where it knows it
        known = model.config if isinstance(model, PreTrainedModel) else load_config(str(model))
        modules = USUAL.get(known.model_type, "all-linear")
    return {
        "r": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "target_modules": None if isinstance(modules, str) else sorted(modules),
    }
