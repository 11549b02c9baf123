"""What a recipe may say of where candidates come from: one class a kind of source. No torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from .strict import Strict


class PolicySource(Strict, frozen=True):
    """The policy, drawn as the section ``sample`` says."""

    use: Literal["policy"]
    k: int = Field(ge=1)


class ModelSource(Strict, frozen=True):
    """Another local model, never tuned; ``sample``: what is drawn otherwise than the section says."""

    use: Literal["model"]
    k: int = Field(ge=1)
    model: str
    sample: dict[str, Any] = Field(default_factory=dict)


class PriceConfig(Strict, frozen=True):
    """Of a million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class EndpointSource(Strict, frozen=True):
    """A model behind an OpenAI-compatible server; ``url`` None is OpenAI's. What is None is the section's. ``chat``
    sends a text as one user message."""

    use: Literal["endpoint"]
    k: int = Field(ge=1)
    model: str
    url: str | None = Field(default=None, pattern=r"^https?://")
    key_env: str = "OPENAI_API_KEY"
    chat: bool = False
    temperature: float | None = Field(default=None, ge=0)
    max_new_tokens: int | None = Field(default=None, ge=1)
    concurrency: int = Field(default=8, ge=1)
    retries: int = Field(default=5, ge=0)
    timeout: float = Field(default=60.0, gt=0)
    requests_per_minute: int | None = Field(default=None, ge=1)
    price: PriceConfig | None = None


class PoolSource(Strict, frozen=True):
    """Answers from a file; ``k`` None: all that a prompt has."""

    use: Literal["pool"]
    k: int | None = Field(default=None, ge=1)
    path: str


Source = Annotated[PolicySource | ModelSource | EndpointSource | PoolSource, Field(discriminator="use")]
SourceName = Annotated[str, StringConstraints(pattern=r"^[\w-]+$")]  # part of metrics' and files' names
HOW_ASKED = re.compile(  # what may change in a running run: not what is asked, but how
    r"sample\.sources\.[\w-]+\.(url|key_env|concurrency|retries|timeout|requests_per_minute|price(\..*)?)"
    r"|(reward|evaluate\.monitor)\.\d+\.elsewhere"
)
USES: dict[str, type[Strict]] = {
    "policy": PolicySource,
    "model": ModelSource,
    "endpoint": EndpointSource,
    "pool": PoolSource,
}
