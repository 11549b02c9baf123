"""Prompts, candidates and scored candidates as parquet, one row each, in the columns of docs/architecture.md."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import UserError
from .files import replacing
from .protocols import Codec
from .types import Candidate, Prompt, Scored, Text

T = TypeVar("T")
PART = "reward/"
PROMPT = {"prompt_id": pa.string(), "prompt": pa.string(), "chat": pa.bool_(), "columns": pa.string()}
ROW = {**PROMPT, "index": pa.int32(), "source": pa.string(), "logprob": pa.float64()}


class TextCodec:
    """Text on disk: what a person reads, and the exact tokens that were drawn."""

    @property
    def schema(self) -> Mapping[str, Any]:
        return {
            "output": pa.string(),
            "token_ids": pa.list_(pa.int32()),
            "token_logprobs": pa.list_(pa.float32()),
            "finish_reason": pa.string(),
        }

    def encode(self, output: Text, folder: Path) -> dict[str, Any]:
        return {
            "output": output.text,
            "token_ids": output.token_ids,
            "token_logprobs": output.token_logprobs,
            "finish_reason": output.finish_reason,
        }

    def decode(self, row: Mapping[str, Any], folder: Path) -> Text:
        if row["output"] is None:
            raise UserError(f"candidate {row.get('index')} of prompt {row.get('prompt_id')!r} has no output")
        ids, logprobs = row.get("token_ids"), row.get("token_logprobs")
        return Text(
            row["output"],
            None if ids is None else tuple(ids),
            None if logprobs is None else tuple(logprobs),
            row.get("finish_reason") or "stop",
        )


def _prompt_row(prompt: Prompt) -> dict[str, Any]:
    content = prompt.content if isinstance(prompt.content, str) else json.dumps(prompt.content, ensure_ascii=False)
    columns = json.dumps(dict(prompt.columns), ensure_ascii=False, default=str)
    return {"prompt_id": prompt.id, "prompt": content, "chat": prompt.is_chat, "columns": columns}


def _prompt_of(row: dict[str, Any]) -> Prompt:
    content = tuple(json.loads(row["prompt"])) if row.get("chat") else row["prompt"]
    return Prompt(row["prompt_id"], content, json.loads(row.get("columns") or "{}"))


def _write(path: Path, rows: list[dict[str, Any]], schema: dict[str, Any]) -> None:
    with replacing(path) as part:
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(schema.items()))), part)


def _open(path: Path, read: Callable[[Path], T]) -> T:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return read(path)
    except (pa.ArrowException, OSError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path}: not a parquet file, or damaged ({line}); in a run, delete it and run again") from None


def _read(path: Path, needed: Collection[str]) -> list[dict[str, Any]]:
    table = _open(path, pq.read_table)
    missing = sorted(set(needed) - set(table.column_names))
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    return table.to_pylist()


def columns_of(path: Path) -> list[str]:
    """The names of a table's columns."""
    return _open(path, pq.read_schema).names


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    _write(path, [_prompt_row(prompt) for prompt in prompts], PROMPT)


def read_prompts(path: Path) -> list[Prompt]:
    return [_prompt_of(row) for row in _read(path, ["prompt_id", "prompt"])]


def _candidate_row(candidate: Candidate, codec: Codec, folder: Path) -> dict[str, Any]:
    return {
        **_prompt_row(candidate.prompt),
        "index": candidate.index,
        "source": candidate.source,
        "logprob": candidate.logprob,
        **codec.encode(candidate.output, folder),
    }


class _Prompts(dict[str, Prompt]):
    """One object per prompt, however many rows it has."""

    def of(self, row: dict[str, Any]) -> Prompt:
        if row["prompt_id"] not in self:
            self[row["prompt_id"]] = _prompt_of(row)
        return self[row["prompt_id"]]


def _candidate_of(row: dict[str, Any], codec: Codec, folder: Path, prompts: _Prompts) -> Candidate:
    source = row.get("source") or "policy"
    return Candidate(prompts.of(row), row["index"], codec.decode(row, folder), source, row.get("logprob"))


def write_candidates(path: Path, candidates: Sequence[Candidate], codec: Codec) -> None:
    rows = [_candidate_row(candidate, codec, path.parent) for candidate in candidates]
    _write(path, rows, {**ROW, **codec.schema})


def read_candidates(path: Path, codec: Codec) -> list[Candidate]:
    prompts = _Prompts()
    rows = _read(path, ["prompt_id", "prompt", "index", "output"])
    return [_candidate_of(row, codec, path.parent, prompts) for row in rows]


def write_scored(
    path: Path, scored: Sequence[Scored], codec: Codec, chosen: Collection[tuple[str, int]] | None = None
) -> None:
    """``chosen`` holds (prompt id, index) of what was chosen; None leaves the column empty: not decided yet."""
    names = {PART + name: pa.float64() for one in scored[:1] for name in one.parts}
    rows = [
        {
            **_candidate_row(one.candidate, codec, path.parent),
            "reward": one.reward,
            **{PART + name: value for name, value in one.parts.items()},
            "chosen": None if chosen is None else key_of(one) in chosen,
        }
        for one in scored
    ]
    _write(path, rows, {**ROW, **codec.schema, "reward": pa.float64(), **names, "chosen": pa.bool_()})


def read_scored(path: Path, codec: Codec) -> list[Scored]:
    prompts = _Prompts()
    return [
        Scored(
            _candidate_of(row, codec, path.parent, prompts),
            _reward_of(row),
            {name.removeprefix(PART): value for name, value in row.items() if name.startswith(PART)},
        )
        for row in _read(path, ["prompt_id", "prompt", "index", "output", "reward"])
    ]


def _reward_of(row: dict[str, Any]) -> float | None:
    reward = row["reward"]
    if reward is None or math.isnan(reward):
        return None
    if math.isinf(reward):
        raise UserError(f"candidate {row['index']} of prompt {row['prompt_id']!r}: the reward is {reward}")
    return reward


def key_of(one: Scored) -> tuple[str, int]:
    """What names a candidate within its round."""
    return one.candidate.prompt.id, one.candidate.index
