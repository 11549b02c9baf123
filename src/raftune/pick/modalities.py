"""What belongs to a kind of output, and which kind a policy or a table is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..pilot import Pilot
from ..protocols import Codec
from ..table import TextCodec, columns_of
from ..types import Candidate, Policy, Prompt, Scored

PICTURES = "sha256"  # the column that only a table of pictures has


@dataclass(frozen=True)
class Modality:
    """What belongs to a kind of output, besides its sampler, learner and rewards."""

    name: str
    """As a recipe calls it."""
    codec: Codec
    describe: Callable[[Sequence[Candidate], float | None], dict[str, float]]
    """Figures of outputs as such, of which so many seconds went into sampling: diversity, length, rate."""
    appraise: Callable[[Sequence[Scored], Policy, Policy, str], dict[str, float]]
    """Figures of evaluated outputs: of the policy that drew them, against the initial policy where it ``compares``, and
    on the reference answers in that column of the prompts."""
    compares: bool
    shown: Callable[[Any], Any]
    """An output as a viewer takes it: a text, or a picture (PIL)."""
    gallery: bool
    """Does a person take in several outputs of a prompt at a glance?"""
    exhibit: Callable[[Sequence[Scored], Sequence[Scored], int, Path], Any]
    """What a person sees at the end of a run: outputs before and after a round; files go into the folder."""
    prompt_length: Callable[[str], Callable[[Prompt], int] | None]
    """How a policy measures prompts; None where it takes them all."""
    length: Callable[[Candidate], int] | None
    """How long an output is, in words; None where it has no length."""
    pilot: Callable[[Any, Policy, Sequence[Prompt], Callable[[Prompt], int], int, float], Pilot]
    """The rates of this kind's samplers, tried in so many seconds."""
    merge: Callable[[Policy, Path], None]
    """Write a policy into a folder as one model, an adapter with its base."""
    stages: Callable[[Any], dict[str, dict[str, float]]] | None
    """What each stage of :class:`raftune.demands.Demands` holds in memory at most, term by term; None: no formula."""
    formats: Sequence[str]
    """Of :mod:`raftune.share.formats`, those that its candidates are written in."""
    task: str
    """What its policies do, by the Hub's name."""
    library: str
    """What opens its policies, by the Hub's name."""
    adapter_library: str
    """What opens an adapter."""


def modality(name: str) -> Modality:
    match name:
        case "text":
            from .. import pilot, show
            from ..evaluate import text

            return Modality(
                name=name,
                codec=TextCodec(),
                describe=text.describe,
                appraise=text.appraise,
                compares=True,
                shown=str,
                gallery=False,
                exhibit=show.exhibit,
                prompt_length=token_counter,
                length=lambda one: len(str(one.output).split()),
                pilot=pilot.of_text,
                merge=merged_text,
                stages=memory_of_texts,
                formats=("sft", "pairs", "alpacaeval"),
                task="text-generation",
                library="transformers",
                adapter_library="peft",
            )
        case "image":
            from .. import pilot
            from ..evaluate import image, sheet
            from ..picture import PictureCodec

            return Modality(
                name=name,
                codec=PictureCodec(),
                describe=image.describe,
                appraise=image.appraise,
                compares=False,
                shown=lambda output: output.image,
                gallery=True,
                exhibit=sheet.exhibit,
                prompt_length=lambda _: None,
                length=None,
                pilot=pilot.of_pictures,
                merge=merged_pipeline,
                stages=None,
                formats=("imagefolder",),
                task="text-to-image",
                library="diffusers",
                adapter_library="diffusers",
            )
    raise UserError(f"modality: {name!r} is unknown; use text or image")


def modality_of(policy: str) -> str:
    """What a checkpoint makes: ``image`` where it is a diffusers pipeline or an adapter of one, else ``text``."""
    from ..models import DIFFUSERS

    folder = Path(policy)
    if folder.is_dir():
        return "image" if any((folder / name).exists() for name in DIFFUSERS) else "text"
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(policy, DIFFUSERS[0])
    except Exception:  # not there, or out of reach: loading it will tell
        return "text"
    return "image"


def modality_in(table: Path) -> str:
    """What a table of candidates holds."""
    return "image" if PICTURES in columns_of(table) else "text"


def token_counter(policy: str) -> Callable[[Prompt], int]:
    """How long a prompt is in the policy's tokens."""
    from ..models import load_tokenizer
    from ..tokens import encode_prompt

    tokenizer = load_tokenizer(policy)
    return lambda prompt: len(encode_prompt(tokenizer, prompt))


def memory_of_texts(demands: Any) -> dict[str, dict[str, float]]:
    """By :mod:`raftune.memory_of_text`, which knows models' shapes."""
    from ..memory_of_text import stages

    return stages(demands)


def merged_text(policy: Policy, out: Path) -> None:
    """By :mod:`raftune.models`."""
    from ..models import merge

    merge(policy, out)


def merged_pipeline(policy: Policy, out: Path) -> None:
    """By :mod:`raftune.pipelines`."""
    from ..pipelines import merge

    merge(policy, out)
