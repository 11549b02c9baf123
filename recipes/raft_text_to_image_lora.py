"""Reward-ranked fine-tuning of a text-to-image LoRA, with the arguments of diffusers' example.

A command line of diffusers' ``examples/text_to_image/train_text_to_image_lora.py``, and ``--reward``::

    python recipes/raft_text_to_image_lora.py \\
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --dataset_name lambdalabs/naruto-blip-captions --caption_column text --resolution 512 --rank 4 \\
        --train_batch_size 4 --max_train_steps 1000 --learning_rate 1e-4 --lr_scheduler cosine --seed 42 \\
        --output_dir sd-naruto-raft-lora --validation_prompt "cute dragon creature" \\
        --reward clip:openai/clip-vit-base-patch32

The captions are the prompts; the dataset's pictures are not needed, since the pipeline draws its own and a reward
chooses among them. ``output_dir`` is a run directory, and at the end holds ``pytorch_lora_weights.safetensors`` of the
last round; the best round's lies in ``output_dir/best``. docs/diffusers.md tells what each argument means.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from raftune import diffusion_arguments, handover
from raftune.captions import captions
from raftune.commands import console, say_dropped
from raftune.config import Recipe
from raftune.exits import exits

log = logging.getLogger("raftune")

VALIDATION = "validation"  # the figures and pictures of --validation_prompt


@exits
def main(line: Sequence[str] | None = None) -> None:
    given = diffusion_arguments.parser().parse_args(line)
    diffusion_arguments.check(given)
    if unused := diffusion_arguments.unused(given):
        log.warning("%s: set, and without a meaning here", ", ".join(f"--{name}" for name in unused))
    _compute(given)
    from raftune import show

    terminal, folder = console(), Path(given.output_dir)
    experiment = handover.experiment(_recipe(given, folder), "arguments", folder)
    _warn_of_passes(given, experiment.parts.recipe)
    with experiment.run as run:
        say_dropped(terminal, experiment.parts.prompts.counts)
        terminal.print(show.plan(experiment), highlight=False, soft_wrap=True)
        show.follow(terminal, experiment)
        handover.save(experiment, run.last, folder)
    terminal.print(f"adapter: {folder} (round {run.last})", highlight=False, soft_wrap=True)
    if given.push_to_hub:
        name = given.hub_model_id or folder.resolve().name
        address = handover.push(experiment, run.last, name, token=given.hub_token)
        terminal.print(f"pushed: {address}", highlight=False, soft_wrap=True)


def _compute(given: Namespace) -> None:
    """In which precision, before anything is loaded."""
    import torch

    if given.mixed_precision is not None:
        os.environ["RAFTUNE_DTYPE"] = {"no": "float32", "bf16": "bfloat16"}[given.mixed_precision]
    if given.allow_tf32:
        torch.set_float32_matmul_precision("high")


def _recipe(given: Namespace, folder: Path) -> Callable[[int], dict[str, Any]]:
    """The recipe for so many captions that train; what it reads lies below the run directory."""
    column = given.caption_column
    sources = (given.dataset_name, given.dataset_config_name, given.train_data_dir, given.cache_dir)
    rows = captions(column, *sources, given.max_train_samples, given.seed)
    model = _pipeline(given)
    diffusion_arguments.check_prediction(given, model)
    fixed: dict[str, Any] = {"model": model}
    fixed["prompts"] = handover.prompts(folder, rows, given.heldout) | {"column": column}
    also = {}
    if given.validation_prompt is not None:
        shown = [{"id": VALIDATION, column: given.validation_prompt}]
        file = handover.written(folder / handover.FOLDER / "validation.jsonl", shown).resolve()
        also = {VALIDATION: {"path": str(file), "k": given.num_validation_images}}
    evaluate = diffusion_arguments.recipe(given, 1)["evaluate"] | {"also": also}
    return lambda prompts: diffusion_arguments.recipe(given, prompts) | fixed | {"evaluate": evaluate}


def _warn_of_passes(given: Namespace, recipe: Recipe) -> None:
    """Where a round's passes over what it chooses make fewer optimiser steps than are asked for."""
    asked, most = getattr(recipe.tune, "steps", 0), diffusion_arguments.most_steps(recipe.model_dump())
    if most is not None and most < asked:
        log.warning(
            "%d optimiser steps a round are asked for, and %d passes over its chosen pictures make at most %d: raise "
            "--rounds, --prompts_per_round or --max_tune_epochs, or lower --max_train_steps",
            *(asked, given.max_tune_epochs, most),
        )


def _pipeline(given: Namespace) -> str:
    """A folder or hub id; where a revision, variant or cache of a hub id is asked for, what was fetched of it."""
    name, options = given.pretrained_model_name_or_path, (given.revision, given.variant, given.cache_dir)
    if Path(name).is_dir() or not any(options):
        return name
    from diffusers import DiffusionPipeline

    from raftune.models import loading

    asked = dict(zip(("revision", "variant", "cache_dir"), options, strict=True))
    return str(loading(name, lambda: DiffusionPipeline.download(name, **asked)))


if __name__ == "__main__":
    try:
        main()
    except typer.Exit as end:
        sys.exit(end.exit_code)
