"""Pairs of answers for people to compare, without telling whose is whose, and their votes read back. No torch."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import replacing
from ..prompts import read_rows
from ..types import Scored, digest, seed_of
from .agreement import krippendorff
from .winrate import LOSS, TIE, WIN

log = logging.getLogger("raftune")

PAIRS, KEY = "pairs.jsonl", "pairs.key.jsonl"
VOTES = ("first", "second", "tie")

Pair = tuple[Scored, Scored]
Ballots = Mapping[str, Mapping[Any, str]]  # pair → rater → vote


def address(pair: Pair) -> str:
    """An id that tells nothing: it depends on prompt, index and both answers, and on which of them is A's."""
    a, b = (one.candidate for one in pair)
    return digest("pair", a.prompt.id, a.index, _shown(a.output), _shown(b.output)).hex()


def write(folder: Path, pairs: Sequence[Pair], seed: int = 0) -> int:
    """``pairs.jsonl``: ``id``, ``prompt``, ``kind`` (text or picture), ``first`` and ``second``;
    ``pairs.key.jsonl``: which of them is A's. The order within pairs and of lines depends on ``seed``; pictures are
    copied beside.

    Nobody can judge two outputs that are the same, nor a picture that is gone: such pairs are left out. Returns how
    many are left; UserError where none is.
    """
    rows = {address(pair): pair for pair in pairs if _differ(pair) and _there(pair)}
    if not rows:
        raise UserError("nothing is left to judge: the two answer alike wherever both can be read; compare others")
    order = sorted(rows, key=lambda name: seed_of(seed, "order", name))
    shown, key = [], []
    for name in order:
        a_first = seed_of(seed, "first", name) % 2 == 0
        a, b = (one.candidate for one in rows[name])
        first, second = (a, b) if a_first else (b, a)
        kind = "picture" if _is_picture(a.output) else "text"
        answers = {side: _lay(one.output, folder) for side, one in (("first", first), ("second", second))}
        shown.append({"id": name, "prompt": a.prompt.content, "kind": kind, **answers})
        key.append({"id": name, "prompt_id": a.prompt.id, "index": a.index, "first": "a" if a_first else "b"})
    for path, lines in ((folder / PAIRS, shown), (folder / KEY, key)):
        with replacing(path) as part:
            part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return len(rows)


def _is_picture(output: Any) -> bool:
    return hasattr(output, "sha256")  # to ask for its PNG would read the file


def _shown(output: Any) -> str:
    return output.sha256 if _is_picture(output) else str(output)


def _differ(pair: Pair) -> bool:
    a, b = (_shown(one.candidate.output) for one in pair)
    return a != b


def _there(pair: Pair) -> bool:
    """Can both be read? What cannot is told."""
    try:
        return all(not _is_picture(one.candidate.output) or one.candidate.output.png for one in pair)
    except UserError as error:
        log.warning("%s; its pair is left out", str(error).partition(";")[0])
        return False


def _lay(output: Any, folder: Path) -> str:
    """A text as it is; a picture as a file named by its content, and its path from the folder."""
    if not _is_picture(output):
        return str(output)
    path = folder / "pictures" / f"{output.sha256[:32]}.png"
    if not path.exists():
        with replacing(path) as part:
            part.write_bytes(output.png)
    return path.relative_to(folder).as_posix()


def key_of(folder: Path) -> dict[str, dict[str, Any]]:
    """By id, what a pair is of (``prompt_id``, ``index``) and whose answer stands ``first`` in it: a's or b's."""
    if not (folder / KEY).is_file():
        raise UserError(f"{folder / KEY}: no such file; give the --out of `--by people`, where the pairs were written")
    return {row["id"]: row for _, row in read_rows(str(folder / KEY))}


def read(votes: Path, folder: Path, pairs: Sequence[Pair]) -> tuple[list[float | None], dict[str, float]]:
    """The outcome of each pair, None without a vote or where :func:`write` left it out, and the counts of
    :func:`counts`.

    Of a rater's votes on a pair (``rater`` is optional in a line) the last counts.
    """
    key = key_of(folder)
    names = [address(pair) for pair in pairs]
    if not key.keys() <= set(names):
        raise UserError(f"{folder / KEY}: is of another comparison; compare the same two, in the same order")
    ballots: dict[str, dict[object, str]] = {}
    for number, (where, row) in enumerate(read_rows(str(votes))):
        if row.get("id") not in key:
            raise UserError(f"{where}: no pair has the id {row.get('id')!r}; ids are those of {folder / PAIRS}")
        if row.get("vote") not in VOTES:
            raise UserError(f"{where}: vote is {row.get('vote')!r}; use {', '.join(VOTES)}")
        rater = row.get("rater")
        ballots.setdefault(row["id"], {})[f"line {number}" if rater is None else ("rater", str(rater))] = row["vote"]
    outcomes = [outcome(ballots[name], key[name]["first"]) if name in ballots else None for name in names]
    return outcomes, counts(ballots)


def counts(ballots: Ballots) -> dict[str, float]:
    """``votes``; ``several_raters``: pairs of two or more; ``raters_agree``: those of them whose votes are the same;
    ``agreement``: Krippendorff's α, absent where there is nothing to agree on."""
    several = [set(said.values()) for said in ballots.values() if len(said) > 1]
    found: dict[str, float] = {"votes": sum(map(len, ballots.values())), "several_raters": len(several)}
    found["raters_agree"] = sum(len(said) == 1 for said in several)
    alpha = krippendorff([*said.values()] for said in ballots.values())
    return found if alpha is None else found | {"agreement": alpha}


def outcome(said: Mapping[Any, str], first: str) -> float:
    """Of a pair, by what its raters said: a side wins where more than half of the votes are for it, else it ties."""
    votes = Counter(said.values())
    for side in ("first", "second"):
        if votes[side] * 2 > len(said):
            return WIN if (side == "first") == (first == "a") else LOSS
    return TIE
