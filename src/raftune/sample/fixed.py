"""A sampler on one model whatever the policy: a teacher that is never tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..models import load_tokenizer
from ..protocols import Sampler
from ..tokens import same_tokens
from ..types import Candidate, Policy, Prompt, Text


@dataclass(frozen=True)
class Fixed:
    """``sampler`` on the checkpoint ``model``. Log-probabilities are the teacher's and nobody else's: they are dropped.
    Token ids stay where the policy has the same tokens; else its learner tokenizes the text."""

    sampler: Sampler
    model: Policy

    def sample(self, policy: Policy, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        """``k`` candidates of each prompt by ``model``; ``policy`` only says which tokens can be learned from."""
        drawn = self.sampler.sample(self.model, prompts, k, seed)
        alike = same_tokens(load_tokenizer(policy), load_tokenizer(self.model))
        return [replace(one, logprob=None, output=_plain(one.output, alike)) for one in drawn]


def _plain(output: Text, alike: bool) -> Text:
    return replace(output, token_ids=output.token_ids if alike else None, token_logprobs=None)
