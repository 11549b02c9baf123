"""A causal language model as a judge: which verdict does it find more likely?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import interrupt, progress
from ..likelihood import fits, logprobs
from ..resident import causal
from ..types import Candidate, Prompt, Text
from .judge import Keep, Tokens

AT_ONCE = 16  # questions between two looks at the clock and the signals


@dataclass(frozen=True)
class LocalJudge:
    """Compares the log-probabilities of the words "A" and "B" as the verdict. Small models seldom say one word and no
    more when asked to, but which of two they would rather say can always be read.

    A chat model is asked in its template; another one continues the question. A question that is longer than the
    model's context gets an empty answer.
    """

    model: str

    @property
    def name(self) -> str:
        return f"local {self.model}"

    def cost(self, tokens: Tokens) -> None:
        """It asks for none."""

    def ask(self, questions: Sequence[str], keep: Keep) -> None:
        _, tokenizer = causal(self.model)
        chat = bool(tokenizer.chat_template)
        words = [Text(word if chat else f" {word}", finish_reason="length") for word in "AB"]
        with progress.bar("judge", len(questions)) as advance:
            for start in range(0, len(questions), AT_ONCE):
                interrupt.check()
                some = questions[start : start + AT_ONCE]
                contents: list[Any] = [({"role": "user", "content": text},) if chat else text for text in some]
                asked = [
                    Candidate(Prompt(str(place), content), index, word)
                    for place, content in enumerate(contents)
                    for index, word in enumerate(words)
                ]
                fitting = fits(self.model, asked)
                readable = [one for one, fit in zip(asked, fitting, strict=True) if fit]
                said = iter(total for total, _ in logprobs(self.model, readable))
                likely = [next(said) if fit else None for fit in fitting]
                for place, (a, b) in enumerate(zip(likely[::2], likely[1::2], strict=True)):
                    keep(start + place, _preferred(a, b))
                advance(len(some))


def _preferred(a: float | None, b: float | None) -> str:
    if a is None or b is None:
        return ""
    if a == b:
        return "tie"
    return "A" if a > b else "B"
