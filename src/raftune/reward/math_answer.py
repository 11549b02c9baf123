"""Is the final answer right? Answers are read and compared by math-verify. No torch."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from ..types import Candidate, Prompt
from .child import Child
from .texts import each, need, texts_of


@dataclass(frozen=True)
class MathReward:
    """1 where the output's final answer equals the reference in the prompt's ``column``, else 0; an output without an
    answer has 0.

    A reference is a number, LaTeX (with or without its dollars) or a solution that ends in ``#### ANSWER`` (GSM8K).
    In an output the answer is what stands after its last ``####`` or, without that, what math-verify finds: a boxed
    one, one that is announced, or else the last. An output that is not compared within ``seconds`` of CPU time is not
    scored.

    Raises UserError if a prompt has no reference that can be read.
    """

    column: str = "answer"
    name: str = "math"
    seconds: float = 5.0

    def __post_init__(self) -> None:
        need(self.name, "math_verify", "math-verify")

    @property
    def version(self) -> str:
        """The graders: another release may judge otherwise."""
        return " ".join(importlib.metadata.version(name) for name in ("math-verify", "latex2sympy2-extended", "sympy"))

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        texts_of(self.name, candidates)
        with Child("math", self.seconds) as child:
            references = {c.prompt.id: self._reference(c.prompt) for c in candidates}
            for prompt, reference in references.items():
                if not child.ask(reference):
                    raise UserError(
                        f"reward {self.name!r}: no answer can be read in the reference of prompt {prompt!r}, column "
                        f"{self.column!r}: {reference[-60:]!r}; a number, LaTeX or '… #### ANSWER' is needed"
                    )
            return each(
                self.name, candidates, lambda c: child.ask(references[c.prompt.id], c.output.text), self.seconds
            )

    def _reference(self, prompt: Prompt) -> str:
        value = prompt.columns.get(self.column)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(
                f"reward {self.name!r}: prompt {prompt.id!r} has no reference answer in the column {self.column!r} "
                f"(its columns: {', '.join(sorted(prompt.columns)) or 'none'}); add it, or name another: math:COLUMN"
            )
        return str(value)
