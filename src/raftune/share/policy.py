"""A policy as a folder that opens where it is handed to, with its card: as it is, or merged into its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .. import files
from ..errors import UserError
from ..report.record import Record
from ..types import Policy
from . import card
from .base import adapter_base, base_of
from .rounds import committed

OURS = {files.FIGURES, card.NAME}  # the learner's own figures, and the card that a library wrote


def policy_of(record: Record, asked: int | None = None) -> tuple[int, Path]:
    """The policy of a round; by default of the best one, of the last one where no reward was measured."""
    done = committed(record)
    number = asked if asked is not None else done[-1] if record.best is None else record.best
    if asked is None and number == 0:
        raise UserError(f"{record.folder}: no round is better than the initial model; name one with --round")
    if number not in done:
        raise UserError(f"--round {number}: is not committed; there are {', '.join(map(str, done))}")
    folder = record.folder / "rounds" / f"{number:04d}" / "policy"
    if not folder.is_dir():
        kept = [str(one) for one in done if (record.folder / "rounds" / f"{one:04d}" / "policy").is_dir()]
        there = ", ".join(kept) or "no round"
        raise UserError(f"--round {number}: its weights were not kept (keep: all would); there are those of {there}")
    return number, folder


def lay_out(
    record: Record, number: int, policy: Policy, out: Path, merge: bool = False, base: str | None = None
) -> list[str]:
    """Write a policy into a folder, with its card. ``base``: the Hub id of what it was tuned from.

    Returns what somebody should know who opens it elsewhere, a line each. A card that is not ours stays as it is.
    """
    out.mkdir(parents=True, exist_ok=True)
    source = Path(policy)
    adapter = source.is_dir() and adapter_base(source) is not None
    if (merge and adapter) or not source.is_dir():
        record.modality.merge(policy, out)
        adapter = False
    else:
        ignored = shutil.ignore_patterns(*OURS, ".*")
        shutil.copytree(source, out, ignore=ignored, dirs_exist_ok=True)
    known = base_of(record, policy, base)
    if adapter and known.hub_id:
        _name_base(out, known.hub_id)
    written = out / card.NAME
    if not written.exists() or card.is_ours(written):
        card.of_model(record, number, known, out, adapter).save(written)
    if adapter and not known.hub_id:
        return [f"the adapter names {known.name}, a folder of this machine, as its base; give --base ID, or --merge"]
    return []


def _name_base(folder: Path, hub_id: str) -> None:
    """An adapter that names its base by a path opens here alone."""
    config = folder / "adapter_config.json"
    if config.exists():
        files.write_json(config, files.read_json(config) | {"base_model_name_or_path": hub_id})
        return
    from safetensors import safe_open
    from safetensors.torch import save_file

    from ..pipelines import LORA, METADATA

    with safe_open(folder / LORA, "pt") as file:
        told = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    said = json.loads(told[METADATA])
    said |= {key: hub_id for key in said if key.endswith("base_model_name_or_path")}
    with files.replacing(folder / LORA) as part:
        save_file(tensors, part, told | {METADATA: json.dumps(said, indent=2, sort_keys=True)})
