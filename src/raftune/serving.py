"""What a recipe may say of vLLM: how the engine is started, and what of it is no part of a run's identity. No torch."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from .strict import Strict

OURS = {"model", "logprobs_mode", "enable_sleep_mode"}  # what the sampler itself decides


class VllmConfig(Strict, frozen=True):
    """How vLLM's engine is started inside this process. What is None is decided by the machine: the precision that
    :class:`raftune.sample.text.TextSampler` has there, eager execution on a CPU, ``max_model_len`` of the model.

    ``idle``: what the engine does while another model is in memory: ``sleep`` (its weights wait in the host's memory,
    its cache is given up; where there is a GPU), ``stay``, or ``stop`` (and start anew). ``engine``: anything else that
    ``vllm.LLM`` takes.
    """

    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    gpu_memory_utilization: float = Field(default=0.8, gt=0, le=1)
    max_model_len: int | None = Field(default=None, ge=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    enforce_eager: bool | None = None
    idle: Literal["sleep", "stay", "stop"] | None = None
    engine: dict[str, Any] = Field(default_factory=dict)

    @field_validator("engine", mode="after")
    @classmethod
    def _no_name_twice(cls, engine: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(engine.keys() & OURS):
            raise ValueError(f"{taken[0]} is decided by the sampler; leave it out")
        if twice := sorted(engine.keys() & cls.model_fields.keys()):
            raise ValueError(f"{twice[0]} is a key of its own; write sample.vllm.{twice[0]}")
        return engine


HOW_SERVED = re.compile(  # what may change in a running run: not what is drawn, but where and how fast
    r"(.+\.)?sample\.(url|vllm|vllm\.(gpu_memory_utilization|max_model_len|tensor_parallel_size|enforce_eager|idle))"
)
