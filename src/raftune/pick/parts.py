"""Samplers, sources, rules and learners by name."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..config import SelectConfig, TextRecipe, TextSelectConfig, TuneConfig
from ..errors import UserError
from ..filters import Filtered, Filters
from ..protocols import Learner, Sampler, Select
from ..rank import parse_rule
from ..recipe import validated
from ..sampling import SampleConfig, TextSampleConfig
from ..score import Rewards
from ..serving import VllmConfig
from ..sources import EndpointSource, ModelSource, PolicySource, PoolSource, Source
from .places import beside_of, custom, model
from .scorers import is_model

if TYPE_CHECKING:
    from ..sample.halving import Ranged
    from ..tune.reward_model import RewardLearner


def sampler(config: SampleConfig, beside: Path = Path()) -> Sampler:
    """What draws from a policy."""
    unsaid = {name for name in ("url", "vllm") if getattr(config, name, None) is None}
    options = config.model_dump(exclude={"prompts_per_round", "k", "shard", "backend", "sources", "halving", *unsaid})
    match config.backend:
        case "text":
            from ..sample.text import TextSampler

            return TextSampler(**options)
        case "vllm" if isinstance(config, TextSampleConfig):
            return _vllm(config)
        case "image":
            from ..sample.image import ImageSampler

            return ImageSampler(**options)
        case backend if ":" in backend:
            return custom("sample.backend", backend, beside, options)
    raise UserError(f"sample.backend: {config.backend!r} is unknown; use text, vllm, image or module:Class")


def _vllm(config: TextSampleConfig) -> Sampler:
    """The engine in this process, or the server at ``url``."""
    if config.url is None and importlib.util.find_spec("vllm") is None:
        raise UserError("sample.backend: vllm needs the package vllm: pip install vllm; or name a server, sample.url")
    from ..sample.served import VllmSampler

    drawn = config.model_dump(include={"max_new_tokens", "temperature", "top_k", "top_p", "stop"})
    how = config.vllm or VllmConfig()
    if config.url is None:
        from ..sample.engine import EngineOptions, engine

        return VllmSampler(engine(EngineOptions(**how.model_dump())), **drawn)
    from ..sample.server import server

    return VllmSampler(server(config.url, how.idle), **drawn)


def sources(config: SampleConfig, beside: Path = Path(), folder: Path | None = None) -> Sampler:
    """What a round's candidates come from: the sampler of the policy, or the mixture of the recipe's sources.
    ``folder``: where what was paid for is kept."""
    if config.sources is None:
        return sampler(config, beside)
    from ..sample.mixture import Member, Mixture

    return Mixture(
        tuple(
            Member(name, source(name, one, config, beside, folder), one.k, one.use == "policy", one.use == "pool")
            for name, one in config.sources.items()
        )
    )


def halving(recipe: TextRecipe, sampler: Sampler, rewards: Rewards, select: Select) -> Sampler:
    """``sampler``, which stops where a prompt of the ``recipe`` is solved. UserError where that would choose another
    candidate than K draws do, or cost more than it saves."""
    from ..sample.halving import Halving

    config, where = recipe.sample.halving, "sample.halving"
    assert config is not None
    if recipe.sample.sources is not None:
        raise UserError(f"{where}: goes with the policy alone; leave sample.sources out")
    if recipe.select.rule not in {"best", "best:1"}:
        raise UserError(f"{where}: stops at one solution; select.rule must be best, not {recipe.select.rule!r}")
    if recipe.select.skip_tied:
        raise UserError(f"{where}: fewer draws tie less; leave select.skip_tied out (a floor leaves out failures)")
    if recipe.kl_coefficient:
        raise UserError(f"{where}: no reward less β·log(p/p0) is known to be the highest; leave kl_coefficient at 0")
    for one in recipe.reward:
        if one.normalise != "none":
            raise UserError(f"{where}: a normalised reward has no highest value; set normalise: none")
        if is_model(one.use):
            raise UserError(
                f"{where}: the reward {one.use} is a model, which would change places with the policy in memory at "
                "every step; it is for functions and verifiers"
            )
    if "first" not in inspect.signature(sampler.sample).parameters:
        raise UserError(f"{where}: the sampler {recipe.sample.backend} takes no `first`, the index to begin with")
    return Halving(cast("Ranged", sampler), rewards, select, config.solved, config.first)


def source(name: str, config: Source, sample: SampleConfig, beside: Path, folder: Path | None) -> Sampler:
    """One source of a recipe, which has this section ``sample``."""
    match config:
        case PolicySource():
            return sampler(sample, beside)
        case ModelSource():
            from ..sample.fixed import Fixed

            where = f"sample.sources.{name}.sample"
            for key in {"k", "prompts_per_round", "shard", "sources", "halving"} & config.sample.keys():
                raise UserError(f"{where}.{key}: does nothing there; k stands beside sample")
            drawn = validated(
                type(sample), sample.model_dump(exclude={"sources", "k", "halving"}) | config.sample, where
            )
            return Fixed(sampler(drawn, beside), model(config.model, beside))
        case EndpointSource():
            return _endpoint(name, config, sample, folder)
        case PoolSource():
            return pool([str(beside_of(config.path, beside))], config.path, name)


def _endpoint(name: str, config: EndpointSource, sample: SampleConfig, folder: Path | None) -> Sampler:
    from ..endpoint import Endpoint, Price
    from ..sample.endpoint import EndpointSampler

    drawn = sample.model_dump(include={"temperature", "max_new_tokens", "stop"})
    drawn |= config.model_dump(include={"temperature", "max_new_tokens"}, exclude_none=True)
    own = config.model_dump(exclude={"use", "k", "chat", "temperature", "max_new_tokens", "price"})
    price = None if config.price is None else Price(config.price.input, config.price.output)
    return EndpointSampler(Endpoint(**own, price=price), **drawn, chat=config.chat, folder=folder, source=name)


def pool(paths: Sequence[str], shown: str, name: str) -> Any:
    """The answers of these files."""
    from ..pool import read_pool
    from ..sample.pool import PoolSampler

    return PoolSampler(tuple(row for path in paths for row in read_pool(path)), shown, name)


def learner(config: TuneConfig, beside: Path = Path()) -> Learner:
    options = config.model_dump(exclude={"backend"})
    lora = options.pop("lora", None)
    match config.backend:
        case "text":
            from ..tune.lora import Lora
            from ..tune.text import TextLearner

            return TextLearner(**options, lora=Lora(**lora) if lora else None)
        case "image":
            from ..tune.image import ImageLearner
            from ..tune.lora import Lora

            return ImageLearner(**options, lora=Lora(**lora) if lora else None)
        case backend if ":" in backend:
            return custom("tune.backend", backend, beside, {**options, "lora": lora})
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
    from ..tune.reward_model import RewardLearner

    return RewardLearner(**options)
