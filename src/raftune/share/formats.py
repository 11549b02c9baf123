"""Outputs as rows of other tools' formats: TRL's prompt-completion and preference types, AlpacaEval's model outputs,
datasets' ImageFolder. Pure functions, no torch.

- A prompt that is a chat makes conversational rows (lists of messages), any other one standard rows (texts).
- A pair is a prompt's candidate with the highest reward and the one with the lowest. Equal rewards keep sampling order:
  the first of the highest, the first of the lowest. What is not scored is in no pair.
- Rewards that differ by no more than ``margin`` make no pair; nor do two outputs that say the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ..columns import Array, Columns, runs
from ..errors import UserError
from ..ledger import ScoredTable
from ..types import Candidate, Prompt, Scored

Row = dict[str, Any]
MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
WHENCE = {"round": pa.int32(), "prompt_id": pa.string()}
SFT = {"reward": pa.float64(), **WHENCE, "index": pa.int32(), "source": pa.string(), "finish_reason": pa.string()}
PAIRS = {"score_chosen": pa.float64(), "score_rejected": pa.float64(), **WHENCE}
TOLD = {"sft": ("prompt", "completion"), "pairs": ("prompt", "chosen", "rejected")}
COLUMNS: dict[str, tuple[str, ...]] = {
    "sft": (*TOLD["sft"], *SFT),
    "pairs": (*TOLD["pairs"], *PAIRS),
    "alpacaeval": ("instruction", "output", "generator", "dataset", "prompt_id", "reward"),
    "imagefolder": ("file_name", "text", "reward", "round", "prompt_id", "index", "source"),
}


def schema(kind: str, chat: bool) -> pa.Schema:
    """Of a parquet file of ``sft`` or ``pairs``."""
    said = dict.fromkeys(TOLD[kind], MESSAGES if chat else pa.string())
    return pa.schema(list({**said, **(SFT if kind == "sft" else PAIRS)}.items()))


def sft(number: int, one: Scored) -> Row:
    """A row to learn from, of round ``number``."""
    candidate = one.candidate
    return {
        "prompt": _prompt(candidate.prompt),
        "completion": _said(candidate),
        "reward": one.reward,
        "round": number,
        "prompt_id": candidate.prompt.id,
        "index": candidate.index,
        "source": candidate.source,
        "finish_reason": candidate.output.finish_reason,
    }


def pair(number: int, best: Scored, worst: Scored) -> Row:
    return {
        "prompt": _prompt(best.candidate.prompt),
        "chosen": _said(best.candidate),
        "rejected": _said(worst.candidate),
        "score_chosen": best.reward,
        "score_rejected": worst.reward,
        "round": number,
        "prompt_id": best.candidate.prompt.id,
    }


def alpacaeval(one: Scored, generator: str, dataset: str) -> Row:
    """A row of AlpacaEval's ``model_outputs``."""
    prompt = one.candidate.prompt
    return {
        "instruction": instruction(prompt),
        "output": str(one.candidate.output),
        "generator": generator,
        "dataset": str(prompt.columns.get("dataset") or dataset),
        "prompt_id": prompt.id,
        "reward": one.reward,
    }


def picture(number: int, one: Scored, file_name: str) -> Row:
    """A row of ImageFolder's metadata."""
    candidate = one.candidate
    return {
        "file_name": file_name,
        "text": instruction(candidate.prompt),
        "reward": one.reward,
        "round": number,
        "prompt_id": candidate.prompt.id,
        "index": candidate.index,
        "source": candidate.source,
    }


def instruction(prompt: Prompt) -> str:
    """A prompt as one text: of a chat what the user said, where that is one turn, else all turns with their roles."""
    if isinstance(prompt.content, str):
        return prompt.content
    asked = [turn["content"] for turn in prompt.content if turn["role"] == "user"]
    if len(asked) == 1 and all(turn["role"] in {"user", "system"} for turn in prompt.content):
        return asked[0]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt.content)


def pairs(number: int, table: ScoredTable, margin: float) -> Iterator[Row]:
    """Of each prompt of a round, the best candidate against the worst."""
    best, worst = extremes(table.columns, margin)
    for high, low in zip(table.take(best).skim(), table.take(worst).skim(), strict=True):
        if str(high.candidate.output) != str(low.candidate.output):
            yield pair(number, high, low)


def extremes(columns: Columns, margin: float) -> tuple[Array, Array]:
    """The rows of the best and of the worst candidate of each prompt where these differ by more than ``margin``."""
    prompt, reward = columns.keys.prompt, columns.reward
    rows = np.flatnonzero(columns.scored)
    down = rows[np.lexsort((-reward[rows], prompt[rows]))]  # stable: equal rewards keep their order
    up = rows[np.lexsort((reward[rows], prompt[rows]))]
    starts, _ = runs(prompt[down])
    best, worst = down[starts], up[starts]
    apart = reward[best] - reward[worst] > margin
    return best[apart], worst[apart]


def alike(rows: Iterator[Row]) -> Iterator[Row]:
    """The same rows. UserError where one is a chat and another is not: no reader takes both in one file."""
    first: type | None = None
    for row in rows:
        kind = type(row["prompt"])
        first = first or kind
        if kind is not first:
            raise UserError(
                f"round {row['round']}, prompt {row['prompt_id']!r}: texts and chats do not go into one file; "
                "export rounds of one kind with --round"
            )
        yield row


def _prompt(prompt: Prompt) -> Any:
    return prompt.content if isinstance(prompt.content, str) else [dict(turn) for turn in prompt.content]


def _said(candidate: Candidate) -> Any:
    text = str(candidate.output)
    return [{"role": "assistant", "content": text}] if candidate.prompt.is_chat else text
