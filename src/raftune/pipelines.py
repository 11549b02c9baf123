"""Diffusion pipelines in and out of memory: a diffusers folder or hub id, or a LoRA folder that names one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.utils import logging
from safetensors import safe_open

from .errors import UserError
from .models import compute_dtype, device, glibc, loading, locate, quiet
from .resident import resident
from .types import Policy

LORA = "pytorch_lora_weights.safetensors"
INDEX = "model_index.json"
DENOISERS = ("unet", "transformer")
METADATA = "lora_adapter_metadata"  # where diffusers keeps an adapter's peft configuration


def precision() -> torch.dtype:
    """float32 on a CPU, where bfloat16 gains a small UNet a tenth; else as for text. ``RAFTUNE_DTYPE`` overrules."""
    where = device()
    return torch.float32 if where.type == "cpu" and "RAFTUNE_DTYPE" not in os.environ else compute_dtype(where)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """:func:`raftune.models.quiet` for diffusers too."""
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def opened(policy: Policy) -> tuple[str, str | None]:
    """The pipeline (folder or hub id) of a policy, and the folder of its LoRA adapter, if it is one."""
    place = locate(policy)
    folder = Path(place)
    if (folder / LORA).exists():
        return _base(folder), place
    if folder.is_dir() and not (folder / INDEX).exists():
        raise UserError(f"model: {place} has no {INDEX}; modality image needs a diffusers pipeline or a LoRA of ours")
    return place, None


def _base(folder: Path) -> str:
    def metadata() -> dict[str, str]:
        with safe_open(folder / LORA, "pt") as file:
            return file.metadata() or {}

    configuration = json.loads(loading(str(folder), metadata).get(METADATA, "{}"))
    for name in DENOISERS:
        if base := configuration.get(f"{name}.base_model_name_or_path"):
            if Path(base).is_absolute() and not Path(base).is_dir():
                raise UserError(
                    f"model: {folder} is a LoRA made for {base}, which is gone; put the pipeline back there"
                )
            return base
    raise UserError(f"model: {folder} is a LoRA that does not name its base; start from the pipeline itself")


def configuration(pipeline: str) -> dict[str, Any]:
    """What the pipeline's index says: its class, and the library and class of each part."""
    index: Any = loading(pipeline, lambda: DiffusionPipeline.load_config(pipeline))
    return dict(index)


def scheduler_config(pipeline: str) -> dict[str, Any]:
    """The configuration of the pipeline's scheduler."""
    part = getattr(diffusers, str(configuration(pipeline).get("scheduler", ["", ""])[1]), None)
    if part is None:
        raise UserError(f"model: {pipeline} has no scheduler that diffusers {diffusers.__version__} has")
    config: Any = loading(pipeline, lambda: part.load_config(pipeline, subfolder="scheduler"))
    return {"_class_name": part.__name__, **config}


def class_of(pipeline: str) -> type[DiffusionPipeline]:
    """The pipeline's class, from its index alone."""
    name = str(configuration(pipeline).get("_class_name"))
    with silent():  # the first look imports it, and what it imports says which image processors it would rather have
        found = getattr(diffusers, name, None)
    if found is None:
        raise UserError(f"model: {pipeline} is a {name}, which diffusers {diffusers.__version__} does not have")
    return found


def load(policy: Policy, dtype: torch.dtype, **without: None) -> Any:
    """The pipeline on the device with its adapter. ``unet=None`` leaves a part out.

    In float32 the adapter is fused into the weights; in bfloat16 it stays beside them, as in tuning: what is less than
    half a step of bfloat16 would be rounded away, and that is most of what a small learning rate does.
    """
    glibc()
    pipeline, lora = opened(policy)
    class_of(pipeline)  # one that is not there would end in the library's traceback
    options = {**without, **variant_of(pipeline)}
    with silent():
        pipe = loading(pipeline, lambda: DiffusionPipeline.from_pretrained(pipeline, dtype=dtype, **options))
        pipe = pipe.to(device())
    pipe.set_progress_bar_config(disable=True)
    if not without:
        name = denoiser_name(pipe)
        if lora is not None:
            (fuse if dtype == torch.float32 else attach)(getattr(pipe, name), name, lora)
    return pipe


def merge(policy: Policy, out: Path) -> None:
    """Write a policy into a folder as one pipeline, a LoRA added to the weights of its base. In float32."""
    pipe = load(policy, torch.float32)
    with silent():
        pipe.save_pretrained(out)


def variant_of(pipeline: str) -> dict[str, str]:
    """``variant="fp16"`` where a folder has its weights in that form alone."""
    for name in DENOISERS:
        files = [file.name for file in (Path(pipeline) / name).glob("*.safetensors*")]
        if files and all(".fp16." in file for file in files):
            return {"variant": "fp16"}
    return {}


def denoiser_name(pipe: Any) -> str:
    """``unet`` or ``transformer``: what is sampled from and tuned. UserError where there is neither."""
    for name in DENOISERS:
        if getattr(pipe, name, None) is not None:
            return name
    parts = ", ".join(sorted(name for name, part in pipe.components.items() if part is not None))
    raise UserError(f"model: {type(pipe).__name__} has neither a unet nor a transformer to tune (it has {parts})")


def fuse(denoiser: Any, name: str, lora: str) -> None:
    """Add the adapter to the weights: no further matrix products at every step."""
    attach(denoiser, name, lora)
    denoiser.fuse_lora()
    denoiser.unload_lora()


def attach(denoiser: Any, name: str, lora: str) -> None:
    """Put an adapter beside the weights."""
    with silent():
        loading(
            lora,
            lambda: denoiser.load_lora_adapter(
                lora, prefix=name, adapter_name="default", weight_name=LORA, use_safetensors=True
            ),
        )


def load_denoiser(pipeline: str, dtype: torch.dtype) -> tuple[str, Any]:
    """The UNet or transformer alone, and which of the two it is."""
    glibc()
    name, part = denoiser_class(pipeline)
    options = {"subfolder": name, "dtype": dtype, **variant_of(pipeline)}
    with silent():
        denoiser = loading(pipeline, lambda: part.from_pretrained(pipeline, **options))
    return name, denoiser.to(device())


def denoiser_class(pipeline: str) -> tuple[str, Any]:
    """``unet`` or ``transformer``, and its class, from the index alone. UserError where there is neither."""
    index = configuration(pipeline)
    for name in DENOISERS:
        library, class_name = index.get(name) or (None, None)
        if library == "diffusers" and class_name:
            return name, getattr(diffusers, class_name)
    raise UserError(f"model: {pipeline} has neither a unet nor a transformer to tune")


def resident_pipeline(policy: Policy) -> Any:
    """The policy for sampling, kept until another is asked for."""
    return resident.get(policy, "pipeline", lambda: load(policy, precision()))
