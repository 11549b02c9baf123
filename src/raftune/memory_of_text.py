"""The shapes in which a text recipe's stages work, and what they need at most (:mod:`raftune.bounds`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import bounds
from .demands import groups, tuned_alike
from .shapes import adapter_of, shape_of

if TYPE_CHECKING:
    from .demands import Demands


def stages(demands: Demands, width: int | None = None) -> dict[str, dict[str, float]]:
    """Bytes of each stage by itself, term by term, without the process below it. ``width``: bytes a number, by
    default here."""
    parts, recipe = demands.parts, demands.parts.recipe
    shape = shape_of(parts.model, width)
    sampler: Any = parts.sampler
    tune: Any = recipe.tune
    new: int = sampler.max_new_tokens
    tempered = sampler.temper.temperature != 1.0 or sampler.temper.top_p is not None

    def drawing(prompts, k) -> list[bounds.Terms]:
        batches = demands.batches(sampler, parts.model, prompts, k)
        return [bounds.sampling(shape, one.rows, one.prompts, one.prompt, new, tempered) for one in batches]

    own = demands.drawers["policy"].k
    sample = bounds.larger(bounds.loading(shape), *drawing(demands.prompts, own))
    lengths = [(demands.length(p), new) for p in parts.prompts.heldout for _ in range(recipe.evaluate.k)]
    read = [bounds.reading(shape, len(one), max(p for p, _ in one), max(o for _, o in one)) for one in groups(lengths)]
    probes = drawing(parts.prompts.heldout, recipe.evaluate.k)
    evaluate = bounds.larger(bounds.loading(shape), *probes, *read)
    adapter = adapter_of(parts.model, tune.lora.r, tune.lora.target_modules) if tune.lora else None
    longest = sorted((demands.length(p) for p in parts.prompts.train), reverse=True)[: tune.batch_size]
    tuned = [
        bounds.tuning(
            shape,
            len(one),
            max(p for p, _ in one),
            max(o for _, o in one),
            adapter,
            tune.optimizer_bits / 8 * (1.02 if tune.optimizer_bits < 32 else 1),  # and a scale of each block
            tune.gradient_checkpointing,
        )
        for one in tuned_alike([(p, new) for p in longest], tune.batch_size, tune.batch_tokens)
    ]
    return {"sample": dict(sample), "tune": dict(bounds.larger(*tuned)), "evaluate": dict(evaluate)}
