"""Cards: candidates and pairs as HTML. What a model wrote is text in it, whatever it contains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from ..report.page import asked, cut, data_address, number

SMALL, LARGE = 208, 512  # pixels of a picture's longer side: among others, and to be judged
CSS = """
.rt-cards, .rt-pair { display: grid; gap: .7rem; }
.rt-cards:has(.rt-picture) { grid-template-columns: repeat(auto-fill, minmax(min(9rem, 100%), 1fr)); }
.rt-pair { grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.rt-card { border: 1px solid var(--border-color-primary); border-radius: .5rem; padding: .6rem .9rem; }
.rt-text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; margin: .3rem 0; }
.rt-prompt { font-weight: 600; }
.rt-soft { font-size: .9rem; margin: 0;
  color: color-mix(in srgb, var(--body-text-color) 72%, var(--body-background-fill)); }
.rt-chosen { color: var(--body-text-color); }
#turning { align-items: center; }
#found { text-align: center; }
.rt-picture { max-width: 100%; height: auto; }
"""


class Cards:
    """Rows of tables and pairs of a trial, as the page shows them."""

    def __init__(self) -> None:
        loader = PackageLoader("raftune.ui", ".")
        environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        self._made: Any = environment.get_template("cards.html.jinja").module

    def of_rows(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Of what a shelf gives."""
        return unmarked(str(self._made.cards([_shown(row) for row in rows])))

    def of_pair(self, pair: Mapping[str, Any], folder: Path) -> str:
        """Of a line of ``pairs.jsonl``; a picture's path begins at ``folder``."""
        picture = pair["kind"] == "picture"
        shown = {
            side: data_address(folder / pair[side], LARGE) if picture else cut(pair[side])
            for side in ("first", "second")
        }
        return unmarked(str(self._made.pair({"kind": pair["kind"], "prompt": asked(pair["prompt"]), **shown})))


def unmarked(html: str) -> str:
    """Braces and dollars as entities: the page's own templates must not read any in what a model wrote."""
    return html.replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;").replace("`", "&#96;")


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    picture = "finish_reason" not in row
    parts = {name.removeprefix("reward/"): row[name] for name in row if name.startswith("reward/")}
    return {
        **row,
        "prompt": asked(json.loads(row["prompt"]) if row.get("chat") else row["prompt"]),
        "reward": "not scored" if row["reward"] is None else f"reward {row['reward']:+.3f}",
        "parts": {name: number(value) for name, value in parts.items()} if len(parts) > 1 else {},
        "logprob": None if row.get("logprob") is None else f"{row['logprob']:.1f}",
        "is_picture": picture,
        "address": data_address(row["folder"] / row["output"], SMALL) if picture else None,
        "output": "" if picture else cut(row["output"] or ""),
    }
