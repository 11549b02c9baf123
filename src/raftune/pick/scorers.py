"""Rewards and judges by name, and how good a reward model is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import RewardConfig
from ..errors import UserError
from ..imports import import_object
from ..protocols import Reward
from ..score import Rewards, Weighted
from ..types import Candidate
from .places import beside_of, model

if TYPE_CHECKING:
    from ..evaluate.judge import Judge


MODELS = {  # what loads one
    *("classifier", "classified", "clip", "pickscore", "aesthetic", "imagereward", "image-classifier", "correct")
}


def is_model(use: str) -> bool:
    """Does this reward take the place of the policy in memory? A user's function is not asked."""
    return use.partition(":")[0] in MODELS


def rewards(configs: Sequence[RewardConfig], beside: Path = Path()) -> Rewards:
    elsewhere, here = ([c.use for c in configs if c.elsewhere is where] for where in (True, False))
    if elsewhere and here:
        raise UserError(
            f"reward: {elsewhere[0]} is worked out elsewhere and {here[0]} is not; say so of all, or of none"
        )
    return Rewards(tuple(Weighted(reward(c, beside), c.weight, c.normalise) for c in configs))


def kl_shaped(rewards: Rewards, coefficient: float, initial: str) -> Rewards:
    """r - β·log(p/p0), β the ``coefficient``."""
    from ..reward.kl import KlReward

    return Rewards((*rewards.members, Weighted(KlReward(initial), -coefficient)))


def reward(config: RewardConfig, beside: Path = Path()) -> Reward:
    """What ``config.use`` names: one of ours (docs/rewards.md), ``module:function`` or ``path.py:function``."""
    found = _reward(config, beside)
    if config.elsewhere and not getattr(found, "elsewhere", False):
        raise UserError(f"reward: {config.use} works here, where the policy is; `elsewhere` is for your own functions")
    return found


def handed(one: Any, told: Mapping[str, Any] | None = None) -> Reward:
    """What a caller has at hand: a reward as it is, a function with TRL's signature, which is also ``told`` these, or
    where a classifier lies."""
    if isinstance(one, str | Path):
        from ..reward.classifier import ClassifierReward

        return ClassifierReward(str(one), Path(str(one)).name)
    from ..reward.functions import rewards as of_functions

    return of_functions(one, told=told).members[0].reward


def _reward(config: RewardConfig, beside: Path) -> Reward:
    kind, _, rest = config.use.partition(":")
    name = config.name or kind
    if verifier := _verifier(kind, rest, name, beside):
        return verifier
    match kind:
        case "vader":
            from ..reward.sentiment import Vader

            return Vader(name)
        case "classifier" | "classified" if rest:
            from ..reward.classifier import ClassifierReward

            return ClassifierReward(model(rest, beside), name, config.label, decides=kind == "classified")
        case "clip" if rest:
            from ..reward.clip import ClipReward

            return ClipReward(model(rest, beside), name)
        case "pickscore":
            from ..reward.clip import PICKSCORE, PICKSCORE_PROCESSOR, ClipReward

            return ClipReward(model(rest or PICKSCORE, beside), name, None, PICKSCORE_PROCESSOR)
        case "aesthetic" if rest:
            from ..reward.aesthetic import AestheticReward, read_head

            head, _, clip = rest.partition("@")
            return AestheticReward(read_head(beside_of(head, beside)), model(clip, beside) if clip else None, name)
        case "imagereward":
            from ..reward.imagereward import ImageReward

            return ImageReward(str(beside_of(rest or "ImageReward-v1.0", beside)), name)
        case "image-classifier" | "correct" if rest:
            from ..reward.image_classifier import ImageClassifierReward

            return ImageClassifierReward(model(rest, beside), name, config.label or "label", kind == "correct")
        case "jpeg-compressibility" | "jpeg-incompressibility":
            from ..reward.jpeg import JpegSize

            return JpegSize(kind == "jpeg-compressibility", name)
        case _ if rest:
            from ..reward.functions import FunctionReward

            function = import_object(config.use, beside)
            if not callable(function):
                raise UserError(f"reward: {config.use} is a {type(function).__name__}, not a function")
            return FunctionReward(function, config.name or config.use.rpartition(":")[2], config.elsewhere)
    raise UserError(
        f"reward: {config.use!r} is unknown; use vader, classifier:MODEL, classified:MODEL, math, math:COLUMN, "
        "regex:PATTERN, length:LO-HI, repetition, json, json-schema:FILE, clip:MODEL, aesthetic:HEAD, pickscore, "
        "imagereward, image-classifier:MODEL, correct:MODEL, jpeg-compressibility, jpeg-incompressibility, "
        "module:function or path.py:function"
    )


def _verifier(kind: str, rest: str, name: str, beside: Path) -> Reward | None:
    """One that looks whether a text is right or as it was asked for."""
    match kind:
        case "math":
            from ..reward.math_answer import MathReward

            return MathReward(rest or "answer", name)
        case "regex" if rest:
            from ..reward.form import RegexReward

            return RegexReward(rest, name)
        case "length" if rest:
            from ..reward.form import length

            return length(rest, name)
        case "repetition":
            from ..reward.form import RepetitionReward

            return RepetitionReward(name)
        case "json":
            from ..reward.json_answer import JsonReward

            return JsonReward(name)
        case "json-schema" if rest:
            from ..reward.json_answer import JsonSchemaReward, read_schema

            return JsonSchemaReward(read_schema(beside_of(rest, beside)), name)
    return None


def judge(
    local: str | None, endpoint: str | None, url: str | None = None, price: tuple[float, float] | None = None
) -> Judge:
    """Who compares two answers: a causal model, or one behind an OpenAI-compatible server (``price``: of a million
    tokens in and out)."""
    if (local is None) == (endpoint is None):
        raise UserError("--by judge: give one of --judge-model and --judge-endpoint")
    if endpoint is not None:
        from ..endpoint import Endpoint, Price
        from ..evaluate.judge import EndpointJudge

        return EndpointJudge(Endpoint(endpoint, url, price=None if price is None else Price(*price)))
    from ..evaluate.local_judge import LocalJudge

    if url is not None or price is not None:
        raise UserError("--judge-url, --judge-price: are for --judge-endpoint")
    return LocalJudge(model(str(local)))


def calibration(
    folder: str, sides: Sequence[Sequence[Candidate]], labels: Sequence[int], names: Sequence[str] | None
) -> tuple[dict[str, float], Callable[[Path], None]]:
    """Figures of a trained reward model as it will serve, and what plots them. ``sides``: of pairs the chosen and the
    rejected ones, of classes (``names``) the texts, with their labels."""
    from ..evaluate import calibration
    from ..reward.classifier import ClassifierReward

    found = [ClassifierReward(folder).logits(some) for some in sides]
    if any(row is None for side in found for row in side):
        raise UserError("reward-model: a held-out row is longer than the model takes; lower --max-tokens")
    rows = [[row for row in side if row is not None] for side in found]
    if names is None:
        one = calibration.of_pairs(*([row[0] for row in side] for side in rows))
    else:
        one = calibration.of_classes(rows[0], labels, names)
    return dict(one.figures), lambda path: calibration.plot(path, one)


def perplexity(policy: str, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Of outputs given their prompts, both as token ids."""
    from ..likelihood import perplexity

    return perplexity(policy, pairs)
