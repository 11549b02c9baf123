"""Preference pairs and labelled texts in: what a reward model learns from. No torch.

What happens to rows that cannot be used is a stated rule and is counted: a side without text is ``empty``, a dialogue
whose last turn is not the assistant's is ``no_answer``, a pair whose sides are the same is ``identical``, a row that
was there before (a text with any label) is ``duplicate``, a row with a side over the limit is ``too_long``: it is
dropped whole, as cutting would favour one side. Pairs of unequal length stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UserError
from .prompts import Row, content_of
from .types import Message, digest

Content = str | tuple[Message, ...]
ROLES = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class Answered:
    """A prompt and an answer to it; a text by itself is an answer to the empty prompt."""

    prompt: Content
    answer: str

    @property
    def key(self) -> str:
        """The same for the same content, however it is cut into prompt and answer."""
        whole = self.prompt + self.answer if isinstance(self.prompt, str) else [*self.prompt, self.answer]
        return digest("answered", json.dumps(whole)).hex()


@dataclass(frozen=True)
class Pair:
    """Two answers, of which ``chosen`` is preferred."""

    chosen: Answered
    rejected: Answered

    @property
    def sides(self) -> tuple[Answered, ...]:
        return self.chosen, self.rejected

    @property
    def key(self) -> str:
        return f"{self.chosen.key} {self.rejected.key}"

    @property
    def group(self) -> str:
        """Pairs of one prompt belong together."""
        return digest("pair", json.dumps(self.chosen.prompt)).hex()


@dataclass(frozen=True)
class Labelled:
    """A text and the name of its class."""

    text: str
    label: str

    @property
    def sides(self) -> tuple[Answered, ...]:
        return (Answered("", self.text),)

    @property
    def key(self) -> str:
        return self.sides[0].key

    group = key


Example = Pair | Labelled


@dataclass(frozen=True)
class Encoded:
    """An example and the token ids of its sides: chosen and rejected, or the one text."""

    example: Example
    ids: tuple[tuple[int, ...], ...]

    @property
    def group(self) -> str:
        return self.example.group


def dialogue(text: str) -> tuple[Message, ...] | None:
    """Anthropic's dialogues, ``"\\n\\nHuman: … \\n\\nAssistant: …"``, as messages; None where a text is none of them.

    Space around a turn is no part of it; turns of one speaker in a row become one, a blank line between them.
    """
    found = list(TURN.finditer(text))
    if not found or found[0].start() != 0 or found[0][1] != "Human":
        return None
    turns: list[dict[str, str]] = []
    ends = [*(turn.start() for turn in found[1:]), len(text)]
    for turn, end in zip(found, ends, strict=True):
        role, content = ROLES[turn[1]], text[turn.end() : end].strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content}".strip()
        else:
            turns.append({"role": role, "content": content})
    return tuple(turns)


def parse(rows: Sequence[Row], dialogues: bool = True) -> tuple[list[Example], dict[str, int]]:
    """Pairs of rows with the columns chosen and rejected (and prompt), labelled texts of rows with text and label.

    ``dialogues``: two texts of the form that :func:`dialogue` reads become messages.
    """
    examples: list[Example] = []
    counts = {"rows": len(rows), "no_answer": 0}
    for where, row in rows:
        if {"chosen", "rejected"} <= row.keys():
            pair = _pair(where, row, dialogues)
            counts["no_answer"] += pair is None
            examples += [] if pair is None else [pair]
        elif {"text", "label"} <= row.keys():
            examples.append(Labelled(_text(where, "text", row["text"]), _label(where, row["label"])))
        else:
            raise UserError(
                f"{where}: needs the columns chosen and rejected (and prompt), or text and label; "
                f"it has {', '.join(sorted(row)) or 'none'}"
            )
    if len({type(one) for one in examples}) > 1:
        raise UserError("--data: holds both pairs and labelled texts; give one kind")
    return examples, counts


def _pair(where: str, row: dict[str, Any], dialogues: bool) -> Pair | None:
    prompt = content_of(f"{where}, prompt", row["prompt"]) if row.get("prompt") is not None else None
    chosen, rejected = (content_of(f"{where}, {side}", row[side]) for side in ("chosen", "rejected"))
    if prompt is None and dialogues and isinstance(chosen, str) and isinstance(rejected, str):
        parsed = dialogue(chosen), dialogue(rejected)
        chosen, rejected = (parsed[0] or chosen, parsed[1] or rejected) if all(parsed) else (chosen, rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            prompt = _common(chosen, rejected)
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        return Pair(Answered(prompt, chosen), Answered(prompt, rejected))
    if isinstance(chosen, str) or isinstance(rejected, str) or isinstance(prompt, str):
        raise UserError(
            f"{where}: prompt, chosen and rejected are all texts or all messages, or the prompt is messages"
        )
    sides = [(*(prompt or ()), *side) for side in (chosen, rejected)]
    if any(not side or side[-1]["role"] != "assistant" for side in sides):
        return None
    return Pair(*(Answered(side[:-1], side[-1]["content"]) for side in sides))


def _common(chosen: str, rejected: str) -> str:
    """What two texts begin with, to the last whole word; not all of either."""
    shorter = min(len(chosen), len(rejected))
    same = next((at for at in range(shorter) if chosen[at] != rejected[at]), shorter)
    return chosen[: max(chosen.rfind(space, 0, same) for space in (" ", "\n")) + 1]


def _text(where: str, column: str, value: object) -> str:
    found = content_of(where, value)
    if not isinstance(found, str):
        raise UserError(f"{where}: {column} is a text, not messages")
    return found


def _label(where: str, value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, int | str) or value == "":
        raise UserError(f"{where}: a label is a whole number or a name, not {value!r:.60}")
    return str(value)


def tidy(
    examples: Iterable[Example], encode: Callable[[Answered], Sequence[int]], limit: int
) -> tuple[list[Encoded], dict[str, int]]:
    """Apply the rules above; return what stays with its token ids, and how many fell to each rule."""
    kept: dict[str, Encoded] = {}
    counts = {"empty": 0, "identical": 0, "duplicate": 0, "too_long": 0}
    for one in examples:
        if not all(_says_something(side, isinstance(one, Labelled)) for side in one.sides):
            counts["empty"] += 1
        elif isinstance(one, Pair) and one.chosen.key == one.rejected.key:
            counts["identical"] += 1
        elif one.key in kept:
            counts["duplicate"] += 1
        elif max(map(len, ids := tuple(tuple(encode(side)) for side in one.sides))) > limit:
            counts["too_long"] += 1
        else:
            kept[one.key] = Encoded(one, ids)
    return list(kept.values()), counts


def _says_something(side: Answered, alone: bool) -> bool:
    return bool(side.answer.strip()) or (not alone and isinstance(side.prompt, str) and bool(side.prompt.strip()))


def longer_chosen(pairs: Sequence[Encoded]) -> float | None:
    """Of the pairs whose sides differ in length (tokens): the share where the longer one is chosen. 0.5 is no bias."""
    unequal = [len(one.ids[0]) > len(one.ids[1]) for one in pairs if len(one.ids[0]) != len(one.ids[1])]
    return sum(unequal) / len(unequal) if unequal else None


def longer_wins(pairs: Sequence[Encoded]) -> float | None:
    """How often "the longer one is better" is right, a tie counting half: the accuracy that a model has to beat."""
    points = [(len(one.ids[0]) > len(one.ids[1])) + (len(one.ids[0]) == len(one.ids[1])) / 2 for one in pairs]
    return sum(points) / len(points) if points else None
