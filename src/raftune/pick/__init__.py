"""The one place that picks implementations: a name in, a part out.

Torch is imported only inside these functions, when a part needs it, so that reading a recipe stays quick.
"""

from .modalities import Modality, modality, modality_in, modality_of, token_counter
from .parts import halving, learner, pool, reward_learner, sampler, select, source, sources
from .places import beside_of, model
from .scorers import calibration, handed, judge, kl_shaped, perplexity, reward, rewards
from .trackers import trackers

__all__ = [
    "Modality",
    "beside_of",
    "calibration",
    "halving",
    "handed",
    "judge",
    "kl_shaped",
    "learner",
    "modality",
    "modality_in",
    "modality_of",
    "model",
    "perplexity",
    "pool",
    "reward",
    "reward_learner",
    "rewards",
    "sampler",
    "select",
    "source",
    "sources",
    "token_counter",
    "trackers",
]
