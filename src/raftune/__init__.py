"""RAFT, Reward rAnked FineTuning (arXiv 2304.06767): sample, rank, fine-tune on the best, repeat."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Name → module. Torch is loaded when a name that needs it is first used, not by `import raftune`.
_PUBLIC = {
    "Candidate": "types",
    "ClassifierReward": "reward.classifier",
    "Filtered": "filters",
    "Filters": "filters",
    "FunctionReward": "reward.functions",
    "ImageLearner": "tune.image",
    "ImageSampler": "sample.image",
    "Interrupted": "errors",
    "Lora": "tune.lora",
    "MathReward": "reward.math_answer",
    "Picture": "picture",
    "PictureCodec": "picture",
    "Prompt": "types",
    "RAFTConfig": "trainer_config",
    "RAFTTrainer": "trainer",
    "Recipe": "config",
    "Rewards": "score",
    "Round": "types",
    "Run": "store",
    "Scored": "types",
    "Text": "types",
    "TextLearner": "tune.text",
    "TextSampler": "sample.text",
    "UserError": "errors",
    "Vader": "reward.sentiment",
    "Weighted": "score",
    "draw": "prompts",
    "parse_rule": "rank",
    "raft": "loop",
    "rewards": "reward.functions",
}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'raftune' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from .config import Recipe as Recipe
    from .errors import Interrupted as Interrupted
    from .errors import UserError as UserError
    from .filters import Filtered as Filtered
    from .filters import Filters as Filters
    from .loop import raft as raft
    from .picture import Picture as Picture
    from .picture import PictureCodec as PictureCodec
    from .prompts import draw as draw
    from .rank import parse_rule as parse_rule
    from .reward.classifier import ClassifierReward as ClassifierReward
    from .reward.functions import FunctionReward as FunctionReward
    from .reward.functions import rewards as rewards
    from .reward.math_answer import MathReward as MathReward
    from .reward.sentiment import Vader as Vader
    from .sample.image import ImageSampler as ImageSampler
    from .sample.text import TextSampler as TextSampler
    from .score import Rewards as Rewards
    from .score import Weighted as Weighted
    from .store import Run as Run
    from .trainer import RAFTTrainer as RAFTTrainer
    from .trainer_config import RAFTConfig as RAFTConfig
    from .tune.image import ImageLearner as ImageLearner
    from .tune.lora import Lora as Lora
    from .tune.text import TextLearner as TextLearner
    from .types import Candidate as Candidate
    from .types import Prompt as Prompt
    from .types import Round as Round
    from .types import Scored as Scored
    from .types import Text as Text
