"""Experiment trackers by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import TrackConfig
from ..entry import Tracker
from ..errors import UserError
from ..imports import import_object

TRACKERS = {  # and how each is installed
    "tensorboard": "pip install 'raftune[trackers]'",
    "trackio": "pip install 'raftune[trackers]'",
    "wandb": "pip install wandb",
    "mlflow": "pip install mlflow",
}
PROJECT = "raftune"


def trackers(configs: Sequence[TrackConfig], folder: Path, beside: Path = Path()) -> dict[str, Tracker]:
    """Of the run in ``folder``, by what they are noted as; nothing is started. UserError where a name is unknown or a
    package is not there."""
    return {one.key: tracker(one, folder, beside) for one in configs}


def installed() -> list[str]:
    """Of :data:`TRACKERS` those whose package is there."""
    from accelerate.tracking import get_available_trackers

    return [name for name in TRACKERS if name in map(str, get_available_trackers())]


def tracker(config: TrackConfig, folder: Path, beside: Path = Path()) -> Tracker:
    project, name = config.project or PROJECT, config.name or run_name(folder)
    if ":" in config.use:
        from ..track.general import General

        return General(_class(config.use, beside), project, folder, config.options)
    if config.use not in TRACKERS:
        raise UserError(f"track: {config.use!r} is unknown; use {', '.join(TRACKERS)} or module:Class")
    if config.use not in installed():
        raise UserError(f"track: {config.use} is not installed: {TRACKERS[config.use]}")
    try:
        return _known(config, project, name, folder)
    except ImportError as error:
        raise UserError(f"track: {config.use} is installed and cannot be imported: {error}") from error


def _known(config: TrackConfig, project: str, name: str, folder: Path) -> Tracker:
    """One of those in :data:`TRACKERS`."""
    match config.use:
        case "tensorboard":
            from ..track.tensorboard import TensorBoard

            return TensorBoard(folder, config.options)
        case "trackio":
            from ..track.trackio import Trackio

            return Trackio(project, name, config.options)
        case "wandb":
            from ..track.wandb import WandB

            return WandB(config.project or os.environ.get("WANDB_PROJECT", PROJECT), name, folder, config.options)
        case _:
            from ..track.mlflow import MLflow

            return MLflow(project, name, config.options)


def _class(spec: str, beside: Path) -> type[Any]:
    from accelerate.tracking import GeneralTracker

    found = import_object(spec, beside)
    if not (isinstance(found, type) and issubclass(found, GeneralTracker)):
        raise UserError(f"track: {spec} is no subclass of accelerate.tracking.GeneralTracker")
    return found


def run_name(folder: Path) -> str:
    """The directory's; of a sweep's cell that of the sweep, the cell and the seed."""
    folder = folder.resolve()
    cells = folder.parent.parent
    return f"{cells.parent.name} {folder.parent.name} {folder.name}" if cells.name == "cells" else folder.name
