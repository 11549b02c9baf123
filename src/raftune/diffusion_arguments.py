"""The arguments of diffusers' LoRA example, ``text_to_image/train_text_to_image_lora.py``, and what they mean here.

As of diffusers 0.42. A command line of the example is taken whole: what means something is honoured, what means nothing
is told by :func:`unused`, what cannot be honoured is a UserError. No torch.
"""

from __future__ import annotations

import math
import os
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any

from . import handover
from .errors import UserError
from .pick.trackers import installed

Arguments = Mapping[str, tuple[Any, Any, str]]  # name → type, default, help
FLAG = bool
PROJECT = "text2image-fine-tune"  # under which the example's runs stand in a tracker

HONOURED: Arguments = {
    "pretrained_model_name_or_path": (str, None, "The pipeline: a folder or a hub id."),
    "revision": (str, None, "Of the hub id."),
    "variant": (str, None, "Of the hub id's files, like fp16."),
    "dataset_name": (str, None, "Hub id or folder; the captions are the prompts, the pictures not needed."),
    "dataset_config_name": (str, None, "Its configuration."),
    "train_data_dir": (str, None, "A folder with metadata.jsonl, .csv or .parquet that holds the captions."),
    "caption_column": (str, "text", "A caption, or a list of captions: each is a prompt."),
    "max_train_samples": (int, None, "So many rows, drawn by the seed."),
    "cache_dir": (str, None, "Where what is fetched lies."),
    "validation_prompt": (str, None, "Drawn and scored beside the held-out prompts, figures validation/…"),
    "num_validation_images": (int, 4, "Pictures of the validation prompt."),
    "validation_epochs": (int, 1, "Rounds between two evaluations."),
    "output_dir": (str, "sd-model-finetuned-lora", "The run directory; the adapter lies in it at the end."),
    "seed": (int, None, "None: 0."),
    "resolution": (int, 512, "Height and width of the pictures that are drawn."),
    "train_batch_size": (int, 16, "Pictures through the denoiser at once."),
    "gradient_accumulation_steps": (int, 1, "Times train_batch_size: pictures of an optimiser step."),
    "num_train_epochs": (int, 100, "Optimiser steps in all, as passes over the captions."),
    "max_train_steps": (int, None, "Optimiser steps in all; they are spread over the rounds."),
    "gradient_checkpointing": (FLAG, False, "Less memory, more time."),
    "learning_rate": (float, 1e-4, "At the start of each round."),
    "scale_lr": (FLAG, False, "Times the pictures of an optimiser step."),
    "lr_scheduler": (str, "constant", "Within a round: constant, linear, cosine, …"),
    "snr_gamma": (float, None, "min-SNR weighting; None for the plain loss."),
    "use_8bit_adam": (FLAG, False, "Moments in 8 bits; needs bitsandbytes."),
    "allow_tf32": (FLAG, False, "TF32 products of float32."),
    "adam_weight_decay": (float, 1e-2, "Weight decay."),
    "max_grad_norm": (float, 1.0, "Gradients are clipped to it."),
    "mixed_precision": (str, None, "no or bf16; None: what the machine multiplies."),
    "checkpointing_steps": (int, 500, "Optimiser steps between two states on disk."),
    "rank": (int, 4, "Of the LoRA; its alpha is the same."),
    "push_to_hub": (FLAG, False, "Upload the adapter at the end."),
    "hub_token": (str, None, "For the upload."),
    "hub_model_id": (str, None, "Of the repository; None: the name of output_dir."),
    "report_to": (str, None, "tensorboard, wandb, trackio, mlflow, module:Class or all; None: nobody."),
}
FIXED: Arguments = {  # these have one value here; another is refused
    "adam_beta1": (float, 0.9, "AdamW's."),
    "adam_beta2": (float, 0.999, "AdamW's."),
    "adam_epsilon": (float, 1e-8, "AdamW's."),
    "noise_offset": (float, 0.0, "None is added."),
    "prediction_type": (str, None, "The pipeline's own."),
    "resume_from_checkpoint": (str, None, "latest: a run in output_dir is always resumed."),
}
UNUSED: Arguments = {
    "image_column": (str, "image", "The dataset's pictures are not needed."),
    "center_crop": (FLAG, False, "Nor are they prepared."),
    "random_flip": (FLAG, False, "Nor flipped."),
    "image_interpolation_mode": (str, "lanczos", "Nor resized."),
    "dataloader_num_workers": (int, 0, "Nor loaded."),
    "lr_warmup_steps": (int, 500, "Each round begins anew, without a warm-up."),
    "logging_dir": (str, "logs", "Figures lie in metrics.jsonl and report.html."),
    "checkpoints_total_limit": (int, None, "The last state replaces the one before."),
    "enable_xformers_memory_efficient_attention": (FLAG, False, "PyTorch's attention is used."),
    "local_rank": (int, -1, "One process does it."),
}
OURS: Arguments = {
    "num_generations": (int, 8, "K: pictures of each prompt in a round."),
    "prompts_per_round": (int, 64, "At most all."),
    "rounds": (int, 10, "Of drawing, ranking and tuning."),
    "max_tune_epochs": (int, 10, "Passes over the chosen pictures in a round, at most."),
    "num_inference_steps": (int, None, "Steps of a picture; None: the pipeline's."),
    "guidance_scale": (float, None, "None: the pipeline's."),
    "negative_prompt": (str, None, "With guidance."),
    "rule": (str, "best", "What is learned from: best, best:N, top:FRACTION, above:REWARD."),
    "floor": (float, None, "What scores below is never learned from."),
    "patience": (int, None, "Rounds without a better held-out reward after which it ends."),
    "heldout": (float, None, "Prompts (or their share) that never train; None: a tenth, 64 at most."),
}


def parser() -> ArgumentParser:
    """Of the example's arguments and RAFT's. An unknown one ends the program with exit code 2."""
    made = ArgumentParser(
        description="Reward-ranked fine-tuning (RAFT) of a text-to-image LoRA, by the arguments of diffusers' example.",
        formatter_class=ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    raft = made.add_argument_group("of RAFT")
    what = "What ranks (docs/rewards.md), like clip:MODEL or my_rewards.py:f; several are summed."
    raft.add_argument("--reward", nargs="+", required=True, metavar="SPEC", help=what)
    raft.add_argument("--reward_weights", nargs="+", type=float, help="As many as rewards; None: 1 each.")
    groups = {
        raft: OURS,
        made.add_argument_group("of the example, honoured"): HONOURED,
        made.add_argument_group("of the example, with one value here"): FIXED,
        made.add_argument_group("of the example, accepted and without a meaning here"): UNUSED,
    }
    for group, arguments in groups.items():
        for name, (kind, default, text) in arguments.items():
            if kind is FLAG:
                group.add_argument(f"--{name}", action="store_true", help=text)
            else:
                needed = name == "pretrained_model_name_or_path"
                group.add_argument(f"--{name}", type=kind, default=default, required=needed, help=text)
    return made


def check(given: Namespace) -> None:
    """UserError for what cannot be honoured, before anything is loaded."""
    if given.dataset_name is None and given.train_data_dir is None:
        raise UserError("--dataset_name: is needed, or --train_data_dir; their captions are the prompts")
    for name in ("adam_beta1", "adam_beta2", "adam_epsilon", "noise_offset"):
        if (value := getattr(given, name)) != (fixed := FIXED[name][1]):
            raise UserError(f"--{name} {value:g}: is {fixed:g} here; leave it out")
    if given.resume_from_checkpoint not in {None, "latest"}:
        raise UserError("--resume_from_checkpoint: a run goes on in its own output_dir; leave it out, or write latest")
    if given.mixed_precision not in {None, "no", "bf16"}:
        raise UserError(f"--mixed_precision {given.mixed_precision}: is not there; use bf16 or no")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("WORLD_SIZE: one process does all; start it without accelerate launch, or with one process")
    if given.reward_weights is not None and len(given.reward_weights) != len(given.reward):
        raise UserError(f"--reward_weights: {len(given.reward_weights)} weights for {len(given.reward)} rewards")
    for name in ("rounds", "prompts_per_round", "train_batch_size", "gradient_accumulation_steps"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name}: should be at least 1, got {getattr(given, name)}")
    handover.schedule(given.lr_scheduler, "--lr_scheduler")


def check_prediction(given: Namespace, pipeline: str) -> None:
    """UserError where another ``prediction_type`` is asked for than the pipeline's scheduler has."""
    if given.prediction_type is None:
        return
    from .pipelines import scheduler_config

    own = scheduler_config(pipeline).get("prediction_type", "epsilon")
    if given.prediction_type != own:
        raise UserError(f"--prediction_type {given.prediction_type}: the pipeline predicts {own}; leave it out")


def unused(given: Namespace) -> list[str]:
    """What was set and means nothing here."""
    changed = [name for name, (_, default, _) in UNUSED.items() if getattr(given, name) != default]
    warms = given.lr_scheduler != "constant" and given.lr_warmup_steps > 0
    others = [name for name in changed if name != "lr_warmup_steps"]
    return [*others, *(["lr_warmup_steps"] if warms else [])]


def steps_of_a_round(given: Namespace, prompts: int) -> int:
    """The example's optimiser steps on so many captions, spread over the rounds."""
    batches = math.ceil(prompts / given.train_batch_size)
    epoch = math.ceil(batches / given.gradient_accumulation_steps)
    total = given.max_train_steps or given.num_train_epochs * epoch
    return max(1, math.ceil(total / given.rounds))


def recipe(given: Namespace, prompts: int) -> dict[str, Any]:
    """As a recipe of ``modality: image`` says it, without the model and where so many prompts lie."""
    batch = given.train_batch_size * given.gradient_accumulation_steps
    weights = given.reward_weights or [1.0] * len(given.reward)
    return {
        "modality": "image",
        "reward": [{"use": use, "weight": weight} for use, weight in zip(given.reward, weights, strict=True)],
        "sample": {
            "prompts_per_round": min(given.prompts_per_round, prompts),
            "k": given.num_generations,
            "height": given.resolution,
            "width": given.resolution,
            "steps": given.num_inference_steps,
            "guidance": given.guidance_scale,
            "negative_prompt": given.negative_prompt,
        },
        "select": {"rule": given.rule, "floor": given.floor},
        "tune": {
            "learning_rate": given.learning_rate * (batch if given.scale_lr else 1),
            "batch_size": batch,
            "batch_rows": given.train_batch_size,
            "steps": steps_of_a_round(given, prompts),
            "max_epochs": given.max_tune_epochs,
            "schedule": handover.schedule(given.lr_scheduler, "--lr_scheduler"),
            "max_grad_norm": given.max_grad_norm,
            "weight_decay": given.adam_weight_decay,
            "optimizer_bits": 8 if given.use_8bit_adam else 32,
            "gradient_checkpointing": given.gradient_checkpointing,
            "save_steps": given.checkpointing_steps,
            "snr_gamma": given.snr_gamma,
            "lora": {"r": given.rank, "alpha": given.rank},
        },
        "evaluate": {"every": given.validation_epochs, "patience": given.patience},
        "track": trackers(given.report_to),
        "rounds": given.rounds,
        "seed": given.seed or 0,
        "out": given.output_dir,
    }


def trackers(report_to: str | None) -> list[dict[str, Any]]:
    """As a recipe says it; of "all" those that are installed, and nobody where there is none."""
    names = installed() if report_to == "all" else [] if report_to in {None, "none"} else [report_to]
    return [{"use": name, **({} if name == "tensorboard" else {"project": PROJECT})} for name in names]


def most_steps(recipe: Mapping[str, Any]) -> int | None:
    """Optimiser steps that a round can make of what it chooses; None where the rule does not tell how many that is."""
    name, _, count = str(recipe["select"]["rule"]).partition(":")
    if name != "best" or not (count or "1").isdigit():
        return None
    chosen = int(count or 1) * recipe["sample"]["prompts_per_round"]
    return recipe["tune"]["max_epochs"] * math.ceil(chosen / recipe["tune"]["batch_size"])
