"""The one place that picks implementations: from what a recipe says to the parts of the loop.

Torch is imported only below, when a part needs it, so that reading a recipe stays quick.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import prompts as prompt_rules
from . import rank
from .config import Recipe, RewardConfig
from .errors import UserError
from .imports import import_object
from .protocols import Codec, Learner, Reward, Sampler, Select
from .score import Rewards, Weighted
from .table import TextCodec
from .types import Candidate, Prompt, Scored


@dataclass(frozen=True)
class Parts:
    """A recipe's implementations. ``beside`` is the recipe's folder."""

    recipe: Recipe
    beside: Path = Path()

    @cached_property
    def model(self) -> str:
        """The initial policy as ``from_pretrained`` takes it."""
        return model(self.recipe.model, self.beside)

    @cached_property
    def sampler(self) -> Sampler:
        sample = self.recipe.sample
        options = {
            name: getattr(sample, name)
            for name in ("max_new_tokens", "temperature", "top_k", "top_p", "stop", "batch_rows")
        }
        return sampler(sample.backend, self.beside, **options)

    @cached_property
    def learner(self) -> Learner:
        options = self.recipe.tune.model_dump(exclude={"backend"})
        return learner(self.recipe.tune.backend, self.beside, **options)

    @cached_property
    def rewards(self) -> Rewards:
        return rewards(self.recipe.reward, self.beside)

    @cached_property
    def select(self) -> Select:
        return rank.parse_rule(self.recipe.select.rule, self.recipe.select.skip_tied)

    @property
    def codec(self) -> Codec:
        return TextCodec()

    @cached_property
    def prompts(self) -> prompt_rules.Prompts:
        return prompts(self.recipe, self.model, self.beside)

    @property
    def settings(self) -> dict[str, Any]:
        """What the run's fingerprint holds: the recipe and the content of its local files."""
        settings = self.recipe.settings
        for key in ("prompts.path", "prompts.heldout"):
            file = _beside(str(settings[key]), self.beside)
            if file.is_file():
                settings[f"{key} sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        return settings

    def describe(self, candidates: Sequence[Candidate]) -> dict[str, float]:
        """Figures of outputs as such: diversity, length."""
        from .evaluate.text import describe

        return describe(candidates)

    def judge(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Figures of held-out outputs, against the initial policy."""
        from .evaluate.text import judge

        return judge(scored, self.model)


def _beside(path: str, folder: Path) -> Path:
    return folder / path if (folder / path).exists() else Path(path)


def model(name: str, beside: Path = Path()) -> str:
    """A model folder is looked for beside the recipe, then here; anything else is a hub id or an asset."""
    from .models import locate

    folder = _beside(name, beside)
    return locate(folder if folder.is_dir() else name)


def sampler(backend: str, beside: Path = Path(), **options: Any) -> Sampler:
    match backend:
        case "text":
            from .sample.text import TextSampler

            return TextSampler(**options)
        case _ if ":" in backend:
            return _custom("sample.backend", backend, beside, options)
    raise UserError(f"sample.backend: {backend!r} is unknown; use text or module:Class")


def learner(backend: str, beside: Path = Path(), **options: Any) -> Learner:
    match backend:
        case "text":
            from .tune.text import Lora, TextLearner

            lora = options.pop("lora", None)
            return TextLearner(**options, lora=Lora(**lora) if lora else None)
        case _ if ":" in backend:
            return _custom("tune.backend", backend, beside, options)
    raise UserError(f"tune.backend: {backend!r} is unknown; use text or module:Class")


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


def reward(config: RewardConfig, beside: Path = Path()) -> Reward:
    """What ``config.use`` names: one of ours (docs/rewards.md), ``module:function`` or ``path.py:function``."""
    kind, _, rest = config.use.partition(":")
    name = config.name or kind
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
            return AestheticReward(read_head(_beside(head, beside)), model(clip, beside) if clip else None, name)
        case "imagereward":
            from .reward.imagereward import ImageReward

            return ImageReward(str(_beside(rest or "ImageReward-v1.0", beside)), name)
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
        f"reward: {config.use!r} is unknown; use vader, classifier:MODEL, clip:MODEL, aesthetic:HEAD, pickscore, "
        "imagereward, image-classifier:MODEL, correct:MODEL, jpeg-compressibility, jpeg-incompressibility, "
        "module:function or path.py:function"
    )


def token_counter(policy: str) -> Callable[[Prompt], int]:
    """How long a prompt is in the policy's tokens."""
    from .models import load_tokenizer
    from .tokens import encode_prompt

    tokenizer = load_tokenizer(policy)
    return lambda prompt: len(encode_prompt(tokenizer, prompt))


def prompts(recipe: Recipe, policy: str, beside: Path = Path()) -> prompt_rules.Prompts:
    """Read, tidy and split the prompts; count what fell to which rule."""
    config = recipe.prompts
    counter = token_counter(policy)

    def read(path: str) -> tuple[list[Prompt], dict[str, int]]:
        rows = prompt_rules.read_rows(str(_beside(path, beside)), config.split, config.name)
        return prompt_rules.tidy(prompt_rules.parse(rows, config.column), counter, config.max_tokens)

    usable, counts = read(config.path)
    if isinstance(config.heldout, str):
        train, (heldout, dropped) = usable, read(config.heldout)
        counts |= {f"heldout_{rule}": count for rule, count in dropped.items()}
    else:
        train, heldout = prompt_rules.split(usable, config.heldout, recipe.seed)
    if not heldout:
        raise UserError(f"prompts.heldout: {config.heldout} has no usable prompt")
    kept = prompt_rules.without(train, heldout)
    counts["also_heldout"] = len(train) - len(kept)
    if recipe.sample.prompts_per_round > len(kept):
        raise UserError(
            f"sample.prompts_per_round: {recipe.sample.prompts_per_round} is more than the {len(kept)} prompts "
            f"that {config.path} leaves to train on"
        )
    return prompt_rules.Prompts(tuple(kept), tuple(heldout), counts)
