"""The sampler that lets vLLM draw: an engine inside this process, or a server by its URL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .. import progress
from ..errors import UserError
from ..models import load_generation_config, load_tokenizer
from ..tokens import encode_prompt
from ..types import Candidate, Policy, Prompt, seed_of
from .decode import Drawn, eos_ids
from .text import candidate, check_length
from .weights import Weights


@dataclass(frozen=True)
class Job:
    """What to draw: ``n`` continuations of each prompt, a prompt's with seeds that count up from its own."""

    prompt_ids: Sequence[Sequence[int]]
    seeds: Sequence[int]
    n: int
    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    stop: Sequence[str]
    eos_ids: Sequence[int]

    def parameters(self, row: int) -> dict[str, Any]:
        """Of one prompt, in the words that ``SamplingParams`` and a server's ``/v1/completions`` share.

        All of them, so that no default of the model or the server (a repetition penalty, a top-k) is added; what ends
        an answer is ours to say, too.
        """
        greedy = self.top_k == 1  # by arg max: vLLM draws among equals, and has one greedy answer for all n
        return {
            "n": 1 if greedy else self.n,
            "seed": self.seeds[row],
            "max_tokens": self.max_tokens,
            "temperature": 0.0 if greedy else self.temperature,
            "top_k": 0 if greedy else self.top_k or 0,
            "top_p": 1.0 if greedy else self.top_p or 1.0,
            "min_p": 0.0,
            **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
            "logprobs": 0,  # that of the drawn token alone
            "stop": list(self.stop),
            "stop_token_ids": list(self.eos_ids),
            "ignore_eos": True,
            "skip_special_tokens": False,  # a stop string may be one
        }


class Backend(Protocol):
    """Where the drawing is done."""

    def ready(self, weights: Weights) -> int | None:
        """From now on these weights answer; how many tokens prompt and answer may have together."""
        ...

    def draw(self, job: Job, advance: Callable[[int], None]) -> list[list[Drawn]]:
        """Of each prompt its continuations; ``advance(n)`` is told of every n prompts done."""
        ...


@dataclass(frozen=True)
class VllmSampler:
    """What :class:`~raftune.sample.text.TextSampler` samples, drawn by vLLM.

    One request a prompt, with n = K and a seed from the prompt's address; continuation i has that seed + i. Prompts go
    out as token ids; token ids, end-of-sequence and stop string included, come back with log-probabilities of the
    untempered, untruncated distribution.
    """

    backend: Backend
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    source: str = "policy"

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise UserError("sample.stop: an empty stop string would end every answer at once")

    def sample(self, policy: Policy, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        """``k`` candidates of each prompt, in order; see :class:`raftune.protocols.Sampler`."""
        if k < 1:
            raise UserError(f"sample.k: {k} candidates per prompt; at least 1 is needed")
        if not prompts:
            return []
        tokenizer = load_tokenizer(policy)
        ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        limit = self.backend.ready(Weights.of(policy))
        check_length(prompts, [len(one) for one in ids], self.max_new_tokens, limit)
        job = Job(
            ids,
            [seed_of("vllm", *seed, prompt.id) >> 1 for prompt in prompts],  # room for + i in 63 bits
            k,
            self.max_new_tokens,
            self.temperature,
            self.top_k,
            self.top_p,
            self.stop,
            eos_ids(tokenizer, load_generation_config(policy)),
        )
        with progress.bar("vllm", len(prompts)) as advance:
            found = self.backend.draw(job, advance)
        drawn = [one * k if self.top_k == 1 else one for one in found]
        return [
            candidate(tokenizer, prompt, index, one, self.stop, self.source)
            for prompt, of_prompt in zip(prompts, drawn, strict=True)
            for index, one in zip(range(k), of_prompt, strict=True)
        ]
