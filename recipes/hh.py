"""Preference pairs of dialogues (Anthropic's HH-RLHF) → what the hh recipe needs, three parts that share no prompt.

    python recipes/hh.py PAIRS runs/hh     PAIRS: .jsonl(.gz), .parquet or a Hub dataset with `chosen` and `rejected`

writes below runs/hh
    demonstrations.jsonl  {"prompt", "completion"}          the supervised start: the chosen answers, as the paper does
    pairs.jsonl           {"prompt", "chosen", "rejected"}  what the reward model learns from
    dialogues.jsonl       {"prompt", "reference"}           up to the answer; `reference` is the chosen one
all as messages. Pairs that are no dialogue, or whose two sides do not share all but the last answer, are counted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raftune.preferences import dialogue
from raftune.prompts import read_rows
from raftune.types import seed_of

SHARES = {"demonstrations": 0.25, "pairs": 0.5, "dialogues": 0.25}
LONGEST = 1200  # characters of a prompt


def parsed(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The pair as messages with its common prompt; None where there is none."""
    chosen, rejected = dialogue(row["chosen"]), dialogue(row["rejected"])
    if not chosen or not rejected or list(chosen[:-1]) != list(rejected[:-1]):
        return None
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        return None
    return {"prompt": list(chosen[:-1]), "chosen": [chosen[-1]], "rejected": [rejected[-1]]}


def row_of(part: str, pair: dict[str, Any]) -> dict[str, Any]:
    match part:
        case "demonstrations":
            return {"prompt": pair["prompt"], "completion": pair["chosen"]}
        case "dialogues":
            return {"prompt": pair["prompt"], "reference": pair["chosen"][0]["content"]}
    return pair


def main(source: str, out: Path) -> None:
    rows = read_rows(source)
    pairs = [pair for _, row in rows if (pair := parsed(row)) is not None]
    short = [pair for pair in pairs if len(json.dumps(pair["prompt"])) <= LONGEST]
    by_prompt: dict[str, list[dict[str, Any]]] = {}  # pairs of one prompt stay in one part
    for pair in short:
        by_prompt.setdefault(json.dumps(pair["prompt"]), []).append(pair)
    order = sorted(by_prompt, key=lambda prompt: seed_of("hh", prompt))
    print(f"{len(rows)} pairs, {len(rows) - len(pairs)} without a common prompt, {len(pairs) - len(short)} too long")
    out.mkdir(parents=True, exist_ok=True)
    at = 0
    for part, share in SHARES.items():
        prompts = order[at : at + int(share * len(order))]
        at += len(prompts)
        members = [pair for prompt in prompts for pair in by_prompt[prompt][: None if part == "pairs" else 1]]
        lines = [json.dumps(row_of(part, pair), ensure_ascii=False) for pair in members]
        (out / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{out / part}.jsonl: {len(lines)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("python recipes/hh.py PAIRS OUT")
    main(sys.argv[1], Path(sys.argv[2]))
