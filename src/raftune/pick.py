"""The one place that picks implementations: a name in, a part out.

Torch is imported only below, when a part needs it, so that reading a recipe stays quick.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import RewardConfig, SampleConfig, SelectConfig, TextSelectConfig, TuneConfig
from .errors import UserError
from .filters import Filtered, Filters
from .imports import import_object
from .protocols import Codec, Learner, Reward, Sampler, Select
from .rank import parse_rule
from .recipe import validated
from .score import Rewards, Weighted
from .sources import EndpointSource, ModelSource, PolicySource, PoolSource, Source
from .table import TextCodec, columns_of
from .types import Candidate, Policy, Prompt, Scored

if TYPE_CHECKING:
    from .evaluate.judge import Judge
    from .tune.reward_model import RewardLearner

PICTURES = "sha256"  # the column that only a table of pictures has


@dataclass(frozen=True)
class Modality:
    """What belongs to a kind of output, besides its sampler, learner and rewards."""

    codec: Codec
    describe: Callable[[Sequence[Candidate], float | None], dict[str, float]]
    """Figures of outputs as such, of which so many seconds went into sampling: diversity, length, rate."""
    appraise: Callable[[Sequence[Scored], Policy, Policy, str], dict[str, float]]
    """Figures of evaluated outputs: of the policy that drew them, against the initial policy where it ``compares``, and
    on the reference answers in that column of the prompts."""
    compares: bool
    exhibit: Callable[[Sequence[Scored], Sequence[Scored], int, Path], Any]
    """What a person sees at the end of a run: outputs before and after a round; files go into the folder."""
    prompt_length: Callable[[str], Callable[[Prompt], int] | None]
    """How a policy measures prompts; None where it takes them all."""


def modality(name: str) -> Modality:
    match name:
        case "text":
            from . import show
            from .evaluate import text

            return Modality(TextCodec(), text.describe, text.appraise, True, show.exhibit, token_counter)
        case "image":
            from .evaluate import image, sheet
            from .picture import PictureCodec

            return Modality(PictureCodec(), image.describe, image.appraise, False, sheet.exhibit, lambda _: None)
    raise UserError(f"modality: {name!r} is unknown; use text or image")


def modality_of(policy: str) -> str:
    """What a checkpoint makes: ``image`` where it is a diffusers pipeline or an adapter of one, else ``text``."""
    from .models import DIFFUSERS

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


def beside_of(path: str, folder: Path) -> Path:
    return folder / path if (folder / path).exists() else Path(path)


def model(name: str, beside: Path = Path()) -> str:
    """A model folder is looked for beside the recipe, then here; anything else is a hub id or an asset."""
    from .models import locate

    folder = beside_of(name, beside)
    return locate(folder if folder.is_dir() else name)


def sampler(config: SampleConfig, beside: Path = Path()) -> Sampler:
    """What draws from a policy."""
    options = config.model_dump(exclude={"prompts_per_round", "k", "shard", "backend", "sources"})
    match config.backend:
        case "text":
            from .sample.text import TextSampler

            return TextSampler(**options)
        case "image":
            from .sample.image import ImageSampler

            return ImageSampler(**options)
        case backend if ":" in backend:
            return _custom("sample.backend", backend, beside, options)
    raise UserError(f"sample.backend: {config.backend!r} is unknown; use text, image or module:Class")


def sources(config: SampleConfig, beside: Path = Path(), folder: Path | None = None) -> Sampler:
    """What a round's candidates come from: the sampler of the policy, or the mixture of the recipe's sources.
    ``folder``: where what was paid for is kept."""
    if config.sources is None:
        return sampler(config, beside)
    from .sample.mixture import Member, Mixture

    return Mixture(
        tuple(
            Member(name, source(name, one, config, beside, folder), one.k, one.use == "policy", one.use == "pool")
            for name, one in config.sources.items()
        )
    )


def source(name: str, config: Source, sample: SampleConfig, beside: Path, folder: Path | None) -> Sampler:
    """One source of a recipe, which has this section ``sample``."""
    match config:
        case PolicySource():
            return sampler(sample, beside)
        case ModelSource():
            from .sample.fixed import Fixed

            where = f"sample.sources.{name}.sample"
            for key in {"k", "prompts_per_round", "shard", "sources"} & config.sample.keys():
                raise UserError(f"{where}.{key}: does nothing there; k stands beside sample")
            drawn = validated(type(sample), sample.model_dump(exclude={"sources", "k"}) | config.sample, where)
            return Fixed(sampler(drawn, beside), model(config.model, beside))
        case EndpointSource():
            return _endpoint(name, config, sample, folder)
        case PoolSource():
            return pool([str(beside_of(config.path, beside))], config.path, name)


def _endpoint(name: str, config: EndpointSource, sample: SampleConfig, folder: Path | None) -> Sampler:
    from .endpoint import Endpoint, Price
    from .sample.endpoint import EndpointSampler

    drawn = sample.model_dump(include={"temperature", "max_new_tokens", "stop"})
    drawn |= config.model_dump(include={"temperature", "max_new_tokens"}, exclude_none=True)
    own = config.model_dump(exclude={"use", "k", "chat", "temperature", "max_new_tokens", "price"})
    price = None if config.price is None else Price(config.price.input, config.price.output)
    return EndpointSampler(Endpoint(**own, price=price), **drawn, chat=config.chat, folder=folder, source=name)


def pool(paths: Sequence[str], shown: str, name: str) -> Any:
    """The answers of these files."""
    from .pool import read_pool
    from .sample.pool import PoolSampler

    return PoolSampler(tuple(row for path in paths for row in read_pool(path)), shown, name)


def learner(config: TuneConfig, beside: Path = Path()) -> Learner:
    options = config.model_dump(exclude={"backend"})
    lora = options.pop("lora", None)
    match config.backend:
        case "text":
            from .tune.lora import Lora
            from .tune.text import TextLearner

            return TextLearner(**options, lora=Lora(**lora) if lora else None)
        case "image":
            from .tune.image import ImageLearner
            from .tune.lora import Lora

            return ImageLearner(**options, lora=Lora(**lora) if lora else None)
        case backend if ":" in backend:
            return _custom("tune.backend", backend, beside, {**options, "lora": lora})
    raise UserError(f"tune.backend: {config.backend!r} is unknown; use text, image or module:Class")


def select(config: SelectConfig) -> Select:
    rule = parse_rule(config.rule, config.skip_tied, config.floor)
    if isinstance(config, TextSelectConfig) and config.filters is not None:
        return Filtered(rule, Filters(**config.filters.model_dump()))
    return rule


def reward_learner(**options: Any) -> RewardLearner:
    """What trains reward models and classifiers. Needs raftune[reward-model]."""
    for package in ("trl", "sklearn", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"reward-model: needs the package {package}; pip install 'raftune[reward-model]'")
    from .tune.reward_model import RewardLearner

    return RewardLearner(**options)


def calibration(
    folder: str, sides: Sequence[Sequence[Candidate]], labels: Sequence[int], names: Sequence[str] | None
) -> tuple[dict[str, float], Callable[[Path], None]]:
    """Figures of a trained reward model as it will serve, and what plots them. ``sides``: of pairs the chosen and the
    rejected ones, of classes (``names``) the texts, with their labels."""
    from .evaluate import calibration
    from .reward.classifier import ClassifierReward

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
    from .likelihood import perplexity

    return perplexity(policy, pairs)


def _custom(key: str, spec: str, beside: Path, options: dict[str, Any]) -> Any:
    """Somebody's own part: called with those options of the recipe that it names."""
    part: Callable[..., Any] = import_object(spec, beside)
    if not callable(part):
        raise UserError(f"{key}: {spec} is a {type(part).__name__}, not a class")
    parameters = inspect.signature(part).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    given = {name: value for name, value in options.items() if takes_all or name in {p.name for p in parameters}}
    try:
        return part(**given)
    except TypeError as error:
        raise UserError(f"{key}: {spec}({', '.join(given)}) raised TypeError: {error}") from error


def rewards(configs: Sequence[RewardConfig], beside: Path = Path()) -> Rewards:
    return Rewards(tuple(Weighted(reward(c, beside), c.weight, c.normalise) for c in configs))


def kl_shaped(rewards: Rewards, coefficient: float, initial: str) -> Rewards:
    """r - β·log(p/p0), β the ``coefficient``."""
    from .reward.kl import KlReward

    return Rewards((*rewards.members, Weighted(KlReward(initial), -coefficient)))


def reward(config: RewardConfig, beside: Path = Path()) -> Reward:
    """What ``config.use`` names: one of ours (docs/rewards.md), ``module:function`` or ``path.py:function``."""
    kind, _, rest = config.use.partition(":")
    name = config.name or kind
    if verifier := _verifier(kind, rest, name, beside):
        return verifier
    match kind:
        case "vader":
            from .reward.sentiment import Vader

            return Vader(name)
        case "classifier" if rest:
            from .reward.classifier import ClassifierReward

            return ClassifierReward(model(rest, beside), name, config.label)
        case "clip" if rest:
            from .reward.clip import ClipReward

            return ClipReward(model(rest, beside), name)
        case "pickscore":
            from .reward.clip import PICKSCORE, PICKSCORE_PROCESSOR, ClipReward

            return ClipReward(model(rest or PICKSCORE, beside), name, None, PICKSCORE_PROCESSOR)
        case "aesthetic" if rest:
            from .reward.aesthetic import AestheticReward, read_head

            head, _, clip = rest.partition("@")
            return AestheticReward(read_head(beside_of(head, beside)), model(clip, beside) if clip else None, name)
        case "imagereward":
            from .reward.imagereward import ImageReward

            return ImageReward(str(beside_of(rest or "ImageReward-v1.0", beside)), name)
        case "image-classifier" | "correct" if rest:
            from .reward.image_classifier import ImageClassifierReward

            return ImageClassifierReward(model(rest, beside), name, config.label or "label", kind == "correct")
        case "jpeg-compressibility" | "jpeg-incompressibility":
            from .reward.jpeg import JpegSize

            return JpegSize(kind == "jpeg-compressibility", name)
        case _ if rest:
            from .reward.functions import FunctionReward

            function = import_object(config.use, beside)
            if not callable(function):
                raise UserError(f"reward: {config.use} is a {type(function).__name__}, not a function")
            return FunctionReward(function, config.name or config.use.rpartition(":")[2])
    raise UserError(
        f"reward: {config.use!r} is unknown; use vader, classifier:MODEL, math, math:COLUMN, regex:PATTERN, "
        "length:LO-HI, repetition, json, json-schema:FILE, clip:MODEL, aesthetic:HEAD, pickscore, "
        "imagereward, image-classifier:MODEL, correct:MODEL, jpeg-compressibility, jpeg-incompressibility, "
        "module:function or path.py:function"
    )


def judge(local: str | None, endpoint: str | None, url: str | None = None) -> Judge:
    """Who compares two answers: a causal model, or one behind an OpenAI-compatible server."""
    if (local is None) == (endpoint is None):
        raise UserError("--by judge: give one of --judge-model and --judge-endpoint")
    if endpoint is not None:
        from .endpoint import Endpoint
        from .evaluate.judge import EndpointJudge

        return EndpointJudge(Endpoint(endpoint, url))
    from .evaluate.local_judge import LocalJudge

    if url is not None:
        raise UserError("--judge-url: is for --judge-endpoint")
    return LocalJudge(model(str(local)))


def _verifier(kind: str, rest: str, name: str, beside: Path) -> Reward | None:
    """One that looks whether a text is right or as it was asked for."""
    match kind:
        case "math":
            from .reward.math_answer import MathReward

            return MathReward(rest or "answer", name)
        case "regex" if rest:
            from .reward.form import RegexReward

            return RegexReward(rest, name)
        case "length" if rest:
            from .reward.form import length

            return length(rest, name)
        case "repetition":
            from .reward.form import RepetitionReward

            return RepetitionReward(name)
        case "json":
            from .reward.json_answer import JsonReward

            return JsonReward(name)
        case "json-schema" if rest:
            from .reward.json_answer import JsonSchemaReward, read_schema

            return JsonSchemaReward(read_schema(beside_of(rest, beside)), name)
    return None


def token_counter(policy: str) -> Callable[[Prompt], int]:
    """How long a prompt is in the policy's tokens."""
    from .models import load_tokenizer
    from .tokens import encode_prompt

    tokenizer = load_tokenizer(policy)
    return lambda prompt: len(encode_prompt(tokenizer, prompt))
