"""A judge compares two answers to a prompt. The exact words it is asked in are in ``judge_prompt.txt``. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import files
from ..prompts import read_rows
from ..types import Prompt, digest

if TYPE_CHECKING:
    from ..endpoint import Answer, Endpoint

TEMPLATE = Path(__file__).with_name("judge_prompt.txt").read_text(encoding="utf-8").rstrip("\n")
VERDICT = re.compile(r"\s*(A|B|[Tt]ie)\.?\s*")

Tokens = tuple[int, int]  # of a question, and of its answer


class Keep(Protocol):
    """What an answer is handed to, with its tokens where they are counted."""

    def __call__(self, place: int, answer: str, tokens: Tokens | None = None, /) -> None: ...


class Judge(Protocol):
    """Whoever answers questions."""

    @property
    def name(self) -> str:
        """Answers are remembered under it."""
        ...

    def cost(self, tokens: Tokens) -> float | None:
        """What so many tokens cost; None where nobody asks for money, or the price is not known."""
        ...

    def ask(self, questions: Sequence[str], keep: Keep) -> None:
        """Call ``keep(place, answer)`` for each question as soon as its answer is there."""
        ...


def question(prompt: Prompt, first: str, second: str) -> str:
    """What the judge reads; a chat as its turns, one after the other."""
    content = prompt.content
    asked = content if isinstance(content, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in content)
    return TEMPLATE.format(prompt=asked, first=first, second=second)


def verdict(answer: str) -> str | None:
    """ "A", "B" or "tie"; None where the answer is anything else."""
    found = VERDICT.fullmatch(answer)
    return None if found is None else {"A": "A", "B": "B"}.get(found[1], "tie")


@dataclass(frozen=True)
class EndpointJudge:
    """A model behind an OpenAI-compatible server, asked at temperature 0 for one word."""

    endpoint: Endpoint
    max_tokens: int = 16

    @property
    def name(self) -> str:
        return f"{self.endpoint.url or 'openai'} {self.endpoint.model}"

    def cost(self, tokens: Tokens) -> float | None:
        return self.endpoint.cost(*tokens)

    def ask(self, questions: Sequence[str], keep: Keep) -> None:
        from ..endpoint import Request

        def said(place: int, answer: Answer) -> None:
            asked, answered = answer.prompt_tokens, answer.completion_tokens
            tokens = None if asked is None or answered is None else (asked, answered)
            keep(place, answer.texts[0] if answer.texts else "", tokens)

        messages = [({"role": "user", "content": text},) for text in questions]
        self.endpoint.ask([Request(one, self.max_tokens, temperature=0.0) for one in messages], said)


@dataclass(frozen=True)
class Remembered:
    """A judge whose answers lie in a JSONL file, one a line as they come: no question is asked twice, ever."""

    judge: Judge
    path: Path

    def answers(self, questions: Sequence[str]) -> list[str]:
        """One answer a question, in order."""
        keys = self._keys(questions)
        known = {key: row["answer"] for key, row in self._known().items()}
        new = {key: text for key, text in zip(keys, questions, strict=True) if key not in known}
        if new:
            fresh = list(new)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as lines:

                def keep(place: int, answer: str, tokens: Tokens | None = None) -> None:
                    known[fresh[place]] = answer
                    row: dict[str, Any] = {"key": fresh[place], "judge": self.judge.name, "answer": answer}
                    lines.write(json.dumps(row | ({} if tokens is None else {"tokens": tokens})) + "\n")
                    lines.flush()

                self.judge.ask(list(new.values()), keep)
        return [known[key] for key in keys]

    def spent(self, questions: Sequence[str]) -> Tokens | None:
        """The tokens that these questions and their answers took, whenever they were asked; None where they were not
        all counted."""
        known = self._known()
        counted = [known[key].get("tokens") for key in dict.fromkeys(self._keys(questions)) if key in known]
        if not counted or None in counted:
            return None
        asked, answered = (sum(column) for column in zip(*counted, strict=True))
        return asked, answered

    def _keys(self, questions: Sequence[str]) -> list[str]:
        return [digest("judge", self.judge.name, text).hex() for text in questions]

    def _known(self) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a killed process left half a line
            with files.replacing(self.path) as part:
                part.write_text(whole, encoding="utf-8")
        return {row["key"]: row for _, row in read_rows(str(self.path))}
