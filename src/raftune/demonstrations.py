"""Demonstrations in: what supervised fine-tuning learns from, before the loop. No torch.

A row is one of these, found by its columns: ``prompt`` and ``completion`` (texts, or messages); ``messages`` (every
assistant turn is an example of its own, what precedes it its prompt); ``text`` (language modelling: every token but the
first). Rules, counted: without text, or an answer to nothing (``empty``); there before (``duplicate``); over the limit
(``too_long``, dropped whole). A ``text`` over the limit is cut there instead (``cut``): its beginning is as good an
example, only its end is not learned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UserError
from .preferences import Content, dialogue
from .prompts import Row, content_of
from .types import digest

Pair = tuple[Sequence[int], Sequence[int]]  # prompt ids, output ids
SHAPES = ("messages", "text")


@dataclass(frozen=True)
class Demonstration:
    """``output`` is learned given ``prompt``; None: the output is a text by itself. ``group``: the conversation it is
    from, or the prompt: what belongs together when some is held out."""

    prompt: Content | None
    output: str
    group: str


@dataclass(frozen=True)
class Encoded:
    """A demonstration's token ids."""

    pair: Pair
    group: str


def parse(rows: Iterable[Row], column: str | None = None, dialogues: bool = True) -> list[Demonstration]:
    """Rows → demonstrations. ``column`` holds the messages or the text, whatever other columns there are;
    ``dialogues``: a text of the form that :func:`raftune.preferences.dialogue` reads is taken as messages."""
    return [one for where, row in rows for one in _of_row(where, row, column, dialogues)]


def _of_row(where: str, row: dict[str, Any], column: str | None, dialogues: bool) -> list[Demonstration]:
    if column is None and {"prompt", "completion"} <= row.keys():
        return _completed(where, content_of(where, row["prompt"]), content_of(where, row["completion"]))
    wanted = (column,) if column else SHAPES
    named = next((name for name in wanted if name in row), None)
    if named is None:
        raise UserError(
            f"{where}: needs {f'the column {column!r}' if column else 'prompt and completion, messages, or text'}; "
            f"it has {', '.join(sorted(row)) or 'none'}"
        )
    content = content_of(where, row[named])
    if isinstance(content, str):
        turns = dialogue(content) if dialogues else None
        return [Demonstration(None, content, _group(content))] if turns is None else _turns(turns, 0)
    return _turns(content, 0)


def _completed(where: str, prompt: Content, completion: Content) -> list[Demonstration]:
    if isinstance(completion, str):
        return [Demonstration(prompt, completion, _group(prompt))]
    if isinstance(prompt, str):
        raise UserError(f"{where}: the completion is messages and the prompt a text; give both alike")
    return _turns((*prompt, *completion), len(prompt))


def _turns(messages: Content, start: int) -> list[Demonstration]:
    """An example for each assistant turn from ``start`` on."""
    assert not isinstance(messages, str)
    first = next((at for at, turn in enumerate(messages) if turn["role"] == "assistant"), len(messages))
    return [
        Demonstration(messages[:at], turn["content"], _group(messages[: max(start, first)]))
        for at, turn in enumerate(messages)
        if at >= start and turn["role"] == "assistant"
    ]


def _group(content: Content) -> str:
    return digest("demonstration", json.dumps(content)).hex()


def tidy(
    demonstrations: Iterable[Demonstration], encode: Callable[[Demonstration], Pair], limit: int
) -> tuple[list[Encoded], dict[str, int]]:
    """Apply the rules above; return what stays, as token ids, and how many fell to each. ``limit``: tokens of prompt
    and output together."""
    kept: dict[str, Encoded] = {}
    counts = {"examples": 0, "empty": 0, "duplicate": 0, "too_long": 0, "cut": 0}
    for one in demonstrations:
        counts["examples"] += 1
        key = digest(json.dumps(one.prompt), one.output).hex()
        if not one.output.strip() or (one.prompt is not None and not _says_something(one.prompt)):
            counts["empty"] += 1
            continue
        if key in kept:
            counts["duplicate"] += 1
            continue
        prompt, output = encode(one)
        if len(prompt) + len(output) > limit:
            if one.prompt is not None:
                counts["too_long"] += 1
                continue
            output = output[: limit - len(prompt)]
            counts["cut"] += 1
        kept[key] = Encoded((prompt, output), one.group)
    return list(kept.values()), counts


def _says_something(content: Content) -> bool:
    turns = [content] if isinstance(content, str) else [turn["content"] for turn in content]
    return any(turn.strip() for turn in turns)
