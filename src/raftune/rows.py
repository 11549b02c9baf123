"""Rows of prompts, candidates and scored candidates: their columns (docs/architecture.md), and how files hold them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import UserError
from .protocols import Codec
from .types import Candidate, Prompt, Text

PART = "reward/"
MOST_PROMPTS = 1 << 14  # that are held at once while a table is read
PROMPT = {"prompt_id": pa.string(), "prompt": pa.string(), "chat": pa.bool_(), "columns": pa.string()}
ROW = {**PROMPT, "index": pa.int32(), "source": pa.string(), "logprob": pa.float64()}


class TextCodec:
    """Text on disk: what a person reads, and the exact tokens that were drawn."""

    portable = True

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


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    content = prompt.content if isinstance(prompt.content, str) else json.dumps(prompt.content, ensure_ascii=False)
    columns = json.dumps(dict(prompt.columns), ensure_ascii=False, default=str)
    return {"prompt_id": prompt.id, "prompt": content, "chat": prompt.is_chat, "columns": columns}


def prompt_of(row: dict[str, Any]) -> Prompt:
    content = tuple(json.loads(row["prompt"])) if row.get("chat") else row["prompt"]
    return Prompt(row["prompt_id"], content, json.loads(row.get("columns") or "{}"))


def candidate_row(candidate: Candidate, codec: Codec, folder: Path) -> dict[str, Any]:
    return {
        **prompt_row(candidate.prompt),
        "index": candidate.index,
        "source": candidate.source,
        "logprob": candidate.logprob,
        **codec.encode(candidate.output, folder),
    }


class Prompts(dict[str, Prompt]):
    """One object per prompt, however many rows it has."""

    def of(self, row: dict[str, Any]) -> Prompt:
        if row["prompt_id"] not in self:
            if len(self) > MOST_PROMPTS:
                self.clear()
            self[row["prompt_id"]] = prompt_of(row)
        return self[row["prompt_id"]]


def candidate_of(row: dict[str, Any], codec: Codec, folder: Path, prompts: Prompts) -> Candidate:
    source = row.get("source") or "policy"
    return Candidate(prompts.of(row), row["index"], codec.decode(row, folder), source, row.get("logprob"))


def layout(schema: pa.Schema) -> dict[str, Any]:
    """How these columns lie in a parquet file: text is compressed, by a dictionary too where it repeats; token ids
    take as many bits as they need; other numbers lie as they are, which is quickest."""
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    lists = {field.name: field.type.value_type for field in schema if pa.types.is_list(field.type)}
    whole = {f"{name}.list.element": "DELTA_BINARY_PACKED" for name, kind in lists.items() if pa.types.is_integer(kind)}
    return {
        "use_dictionary": [name for name in texts if name != "output"],
        "compression": dict.fromkeys(texts, "snappy"),
        "column_encoding": whole,
        "write_statistics": [field.name for field in schema if field.name not in {"output", *lists}],
    }


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Within this block the file is read: UserError where there is none or it is damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path}: not a parquet file, or damaged ({line}); in a run, delete it and run again") from None


def opened(path: Path, needed: Collection[str]) -> pq.ParquetFile:
    """The file, which has the columns that are needed."""
    with readable(path):
        file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    if missing := sorted(set(needed) - set(names)):
        raise UserError(f"{path}: no column {missing[0]!r}; it has {', '.join(names)}")
    return file


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as Python's own values."""
    columns = [_values(column) for column in batch.columns]
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pa.Array) -> list[Any]:
    """As ``to_pylist`` gives them; lists of numbers in a tenth of its time."""
    if not pa.types.is_list(column.type) or not pa.types.is_primitive(column.type.value_type):
        return column.to_pylist()
    if column.flatten().null_count:
        return column.to_pylist()
    ends = np.cumsum(column.value_lengths().fill_null(0).to_numpy()).tolist()
    values, valid = column.flatten().to_numpy().tolist(), column.is_valid().to_pylist()
    return [values[start:end] if there else None for start, end, there in zip([0, *ends], ends, valid, strict=False)]
