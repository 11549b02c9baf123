"""Labelled movie reviews → what the imdb recipe needs, in four parts that share no review.

    python recipes/imdb.py REVIEWS runs/imdb     REVIEWS: .jsonl(.gz), .parquet or a Hub dataset with `text` and `label`

writes below runs/imdb
    demonstrations.jsonl   {"text"}           the supervised start: reviews, cut after WORDS words
    reward.jsonl           {"text", "label"}  what the reward model learns from
    monitor.jsonl          {"text", "label"}  what the judge learns from, which the reward model never saw
    openings.jsonl         {"prompt", "label", "reference"}  the first OPENING words of reviews, and how they went on
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raftune.prompts import read_rows
from raftune.types import seed_of

WORDS = 60  # of a review; what is scored in the loop, opening and answer, is about as long
OPENING = 12
PARTS = {"demonstrations": 800, "reward": 6000, "monitor": 6000, "openings": 400}


def words_of(text: str) -> list[str]:
    """Without the line breaks that the reviews carry as HTML."""
    return re.sub(r"<br\s*/?>", " ", text).split()


def split(rows: Iterable[Mapping[str, Any]], parts: Mapping[str, int]) -> dict[str, list[Mapping[str, Any]]]:
    """Who is in which part depends on the review alone; reviews that come twice count once."""
    unique = {" ".join(words_of(row["text"])): row for row in rows}
    texts = sorted((text for text in unique if len(text.split()) >= WORDS // 2), key=lambda text: seed_of("imdb", text))
    needed = sum(parts.values())
    if len(texts) < needed:
        sys.exit(f"{len(texts)} usable reviews; {needed} are needed")
    found, at = {}, 0
    for name, count in parts.items():
        found[name] = [{**unique[text], "text": text} for text in texts[at : at + count]]
        at += count
    return found


def row_of(part: str, review: Mapping[str, Any]) -> dict[str, Any]:
    words = review["text"].split()
    if part == "openings":
        rest = " " + " ".join(words[OPENING:WORDS])
        return {"prompt": " ".join(words[:OPENING]), "label": review["label"], "reference": rest}
    text = {"text": " ".join(words[:WORDS])}
    return text if part == "demonstrations" else {**text, "label": review["label"]}


def main(source: str, out: Path) -> None:
    rows = [row for _, row in read_rows(source)]
    out.mkdir(parents=True, exist_ok=True)
    for part, reviews in split(rows, PARTS).items():
        lines = [json.dumps(row_of(part, review), ensure_ascii=False) for review in reviews]
        (out / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{out / part}.jsonl: {len(lines)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("python recipes/imdb.py REVIEWS OUT")
    main(sys.argv[1], Path(sys.argv[2]))
