"""Answers that somebody else wrote, from a file: people, another system, an earlier run. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UserError
from .prompts import parse, read_rows
from .types import Prompt, Text, digest

OUTPUTS = ("output", "completion", "answer", "response")  # the first that a row has is its answer
OF_CANDIDATE = {  # columns of our own tables that say nothing of the prompt
    *("prompt_id", "prompt", "chat", "columns", "index", "source", "logprob", "token_ids", "token_logprobs"),
    *("finish_reason", "reward", "chosen"),
}


@dataclass(frozen=True)
class PoolRow:
    """One answer: where it stands, which prompt it is of (by id, by content, or both), who wrote it."""

    where: str
    prompt_id: str | None
    prompt: Prompt | None
    output: Text
    source: str | None

    @property
    def content(self) -> str | None:
        return None if self.prompt is None else content_key(self.prompt)


def content_key(prompt: Prompt) -> str:
    """The same for two prompts that say the same."""
    return json.dumps(prompt.content, sort_keys=True)


def read_pool(path: str) -> list[PoolRow]:
    """The rows of a JSONL or parquet file: ``prompt`` or ``prompt_id``, an answer (``output``, ``completion``,
    ``answer`` or ``response``: a text or one assistant message), optionally ``source``. Our candidates.parquet too."""
    rows = [_row(where, row) for where, row in read_rows(path)]
    if not rows:
        raise UserError(f"{path}: has no row")
    return rows


def _row(where: str, row: dict[str, Any]) -> PoolRow:
    key = next((name for name in OUTPUTS if name in row), None)
    if key is None:
        raise UserError(f"{where}: no column {' or '.join(map(repr, OUTPUTS))}; it has {', '.join(sorted(row))}")
    if row.get("prompt") is None and row.get("prompt_id") is None:
        raise UserError(f"{where}: no column 'prompt' or 'prompt_id'; it has {', '.join(sorted(row))}")
    ids = row.get("token_ids")
    output = Text(
        _text(where, key, row[key]), None if ids is None else tuple(ids), None, row.get("finish_reason") or "stop"
    )
    prompt = None if row.get("prompt") is None else _prompt(where, row, key)
    named = None if row.get("prompt_id") is None else str(row["prompt_id"])
    return PoolRow(where, named, prompt, output, row.get("source") or None)


def _text(where: str, key: str, value: Any) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is a text or one message, not {type(value).__name__}")
    return value


def _prompt(where: str, row: Mapping[str, Any], key: str) -> Prompt:
    """The prompt with the columns that travel with it; without an id of its own it is named by its content."""
    content = row["prompt"]
    own = {name: value for name, value in row.items() if name not in OF_CANDIDATE and name != key}
    columns = {name: value for name, value in own.items() if not name.startswith("reward/")}
    if "chat" in row:  # one of our tables: messages and columns are JSON
        content = json.loads(content) if row["chat"] else content
        columns |= json.loads(row.get("columns") or "{}")
    named = row.get("prompt_id")
    stable = digest("pool", json.dumps(content, sort_keys=True)).hex() if named is None else str(named)
    return parse([(where, {**columns, "prompt": content, "id": stable})])[0]
