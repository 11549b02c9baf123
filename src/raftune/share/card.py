"""Cards: what a person who finds the policy or the data has to know, as ``README.md`` with the Hub's header."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from .. import __version__
from ..report.record import REWARD, Record, about
from ..show import plain
from .base import Base, fingerprint, shared

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard, ModelCard, RepoCard

Card = TypeVar("Card", bound="RepoCard")
NAME = "README.md"
TAGS = ["raft", "raftune"]
LIBRARIES = ("torch", "transformers", "peft", "diffusers")
FIGURES = {
    "held-out reward": REWARD,
    "KL from the initial policy, nats per answer": "heldout/kl",
    "perplexity under the initial policy": "heldout/perplexity",
    "distinct-2": "heldout/distinct_2",
    "diversity of pictures": "heldout/diversity",
    "tokens an answer": "heldout/length_mean",
}


def of_model(record: Record, number: int, base: Base, folder: Path, adapter: bool) -> ModelCard:
    """Of the policy of round ``number`` that lies in ``folder``."""
    from huggingface_hub import ModelCard, ModelCardData

    modality = record.modality
    library = modality.adapter_library if adapter else modality.library
    data = ModelCardData(
        **base.licence,
        library_name=library,
        base_model=base.hub_id,
        base_model_relation=("adapter" if adapter else "finetune") if base.hub_id else None,
        pipeline_tag=modality.task,
        tags=[*TAGS, *(["lora"] if adapter else [])],
        datasets=_datasets(record),
    )
    told = _told(record) | {
        "base": text(base.name),
        "hub_id": base.hub_id,
        "licence": text(base.licence.get("license_name") or base.licence.get("license") or "unknown"),
        "number": number,
        "library": library,
        "adapter": adapter,
        "figures": list(_figures(record, number)),
        "alarms": [(row["round"], text(line)) for row in record.rows for line in row.get("alarms", ())],
    }
    return _close(ModelCard.from_template(data, template_str=_template("model"), **told))


def of_dataset(record: Record, name: str, counts: Mapping[str, int], everything: bool, margin: float) -> DatasetCard:
    """Of a folder with so many rows of each format."""
    from huggingface_hub import DatasetCard, DatasetCardData

    parts = [{"config_name": kind, "data_files": f"{kind}/*.parquet"} for kind in counts]
    data = DatasetCardData(
        pretty_name=name,
        task_categories=[record.modality.task],
        tags=[*TAGS, "synthetic"],
        configs=None if "imagefolder" in counts else parts,  # datasets finds pictures by itself
    )
    told = _told(record) | {
        "name": text(name),
        "counts": counts,
        "everything": everything,
        "margin": f"{margin:g}",
        "base": text(shared(str(record.recipe.get("model") or "a model"))),
    }
    return _close(DatasetCard.from_template(data, template_str=_template("dataset"), **told))


def is_ours(path: Path) -> bool:
    """Is this card one that we wrote? Its header says so."""
    from huggingface_hub import DatasetCard

    if not path.is_file():
        return False
    try:
        tags = DatasetCard.load(path, ignore_metadata_errors=True).data.get("tags")
    except Exception:  # a file of somebody else's, whatever it is
        return False
    return isinstance(tags, list) and "raftune" in tags


def text(said: object) -> str:
    """As one line of Markdown that is text and nothing else, also within a table."""
    line = html.escape(" ".join(plain(str(said)).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]|])", r"\\\1", line)


def _template(name: str) -> str:
    return (Path(__file__).parent / f"{name}.md.jinja").read_text(encoding="utf-8")


def _close(card: Card) -> Card:
    """Where a part is missing, its blank lines are, too."""
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)
    return card


def _told(record: Record) -> dict[str, Any]:
    """What both cards say."""
    recipe = {key: value for key, value in record.recipe.items() if key != "out"}
    dumped = yaml.safe_dump(shared(recipe), sort_keys=False, allow_unicode=True) if recipe else ""
    told = about(shared(recipe)) | {"rounds": str(record.last)}
    ticks = max([2, *map(len, re.findall(r"`+", dumped))]) + 1
    return {
        "title": text(record.name),
        "about": [(name, text(value)) for name, value in told.items() if name != "model"],
        "recipe": dumped,
        "fence": "`" * ticks,
        "versions": ", ".join(_versions()),
    }


def _figures(record: Record, number: int) -> Iterator[tuple[str, str, str]]:
    """Name, before any tuning, after round ``number``: those that were measured at both."""
    before, after = record.row(0), record.row(number)
    names = FIGURES | {name.removeprefix("heldout/"): name for name in record.watched}
    for name, figure in names.items():
        if figure in before and figure in after:
            yield text(name), _number(before, figure), _number(after, figure)


def _number(row: Mapping[str, Any], figure: str) -> str:
    error = row.get(f"{figure.removesuffix('_mean')}_se")
    return f"{row[figure]:.3g}" + (f" ± {error:.2g}" if error is not None else "")


def _datasets(record: Record) -> list[str] | None:
    """The prompts' data set, where it was loaded from the Hub: of a file the fingerprint has the hash."""
    path = (record.recipe.get("prompts") or {}).get("path")
    known = fingerprint(record)
    return [str(path)] if path and known and "prompts.path sha256" not in known else None


def _versions() -> Iterator[str]:
    yield f"raftune {__version__}"
    for name in LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
