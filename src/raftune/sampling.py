"""What a recipe may say of sampling, strict and frozen; one class a modality. No torch."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, ValidationInfo, field_validator

from .serving import VllmConfig
from .sources import Source, SourceName
from .strict import Strict


def _sum_of_sources(known: dict[str, Any]) -> int:
    """``k`` where it is not given: that of the sources, a pool without one adding what it has."""
    sources = known.get("sources")
    return max(1, sum(source.k or 0 for source in sources.values())) if sources else 8


class SampleConfig(Strict, frozen=True):
    """``prompts_per_round``: b; ``k``: candidates per prompt (K); ``shard``: prompts between two writes to disk.
    ``sources``: where candidates come from, by name; None: from the policy alone."""

    sources: dict[SourceName, Source] | None = Field(default=None, min_length=1)
    prompts_per_round: int = Field(default=32, ge=1)
    k: int = Field(default_factory=_sum_of_sources, ge=1)
    shard: int = Field(default=32, ge=1)
    batch_rows: int | None = Field(default=None, ge=1)
    backend: str

    @field_validator("sources", mode="after")
    @classmethod
    def _one_policy(cls, sources: dict[str, Source] | None) -> dict[str, Source] | None:
        if sum(source.use == "policy" for source in (sources or {}).values()) > 1:
            raise ValueError("the policy can be a source once")
        return sources

    @field_validator("k", mode="after")
    @classmethod
    def _k_is_the_sum(cls, k: int, info: ValidationInfo) -> int:
        if info.data.get("sources") and k != (total := _sum_of_sources(info.data)):
            raise ValueError(f"is the sum of its sources, {total}; leave it out")
        return k

    def trial(self, samples: int) -> Self:
        """The same with at most so many of each source."""
        sources = {
            name: source.model_copy(update={"k": min(source.k or samples, samples)})
            for name, source in (self.sources or {}).items()
        }
        return self.model_copy(update={"sources": sources, "k": samples}) if sources else self


class HalvingConfig(Strict, frozen=True):
    """``first`` of a prompt's K, then as many again and again until one has the reward ``solved``, the highest there
    is (docs/rewards.md, Halving)."""

    solved: float
    first: int = Field(default=2, ge=1)


class TextSampleConfig(SampleConfig, frozen=True):
    """``temperature``: λ. ``halving``: no more draws of a prompt that is solved; None: always K. ``backend``: text,
    vllm or module:Class; of vllm ``url`` is a server of its own, else the engine starts here, as ``vllm`` says."""

    temperature: float = Field(default=1.0, gt=0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_new_tokens: int = Field(default=64, ge=1)
    stop: tuple[str, ...] = ()
    halving: HalvingConfig | None = None
    backend: str = "text"
    url: str | None = Field(default=None, pattern=r"^https?://")
    vllm: VllmConfig | None = None

    @field_validator("url", "vllm", mode="after")
    @classmethod
    def _of_vllm(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("backend") == "text":
            raise ValueError("does nothing with backend: text; set backend: vllm")
        return value


class ImageSampleConfig(SampleConfig, frozen=True):
    """What is None is the pipeline's own choice. ``scheduler``: a diffusers scheduler class that fits the model."""

    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    guidance: float | None = Field(default=None, ge=0)
    negative_prompt: str | None = None
    scheduler: str | None = None
    backend: str = "image"

    @field_validator("sources", mode="before")
    @classmethod
    def _policy_alone(cls, sources: Any) -> Any:
        if sources is not None:
            raise ValueError("pictures come from the policy alone, for now; leave it out")
        return sources
