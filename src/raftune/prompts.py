"""Prompts in: JSONL, parquet or a Hub dataset; a held-out split that never trains; a seeded draw per round. No torch.

What happens to rows that cannot be used is a stated rule and is counted (``Prompts.counts``), never a silent cut:
the first row of an id stays and later ones are dropped (``duplicate``), empty prompts are dropped (``empty``), prompts
longer than the limit are dropped whole (``too_long``), and a training prompt whose content is also held out is dropped
(``also_heldout``).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .errors import UserError
from .types import Prompt, digest, seed_of

Item = TypeVar("Item")
Row = tuple[str, dict[str, Any]]  # where it stands ("file.jsonl line 7"), and its columns


@dataclass(frozen=True)
class Prompts:
    """What trains, what never does, and how many rows fell to which rule."""

    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    counts: dict[str, int] = field(default_factory=dict)


def read_rows(path: str, split: str = "train", name: str | None = None) -> list[Row]:
    """Rows of a ``.jsonl`` / ``.json`` (lines; also ``.gz``) or ``.parquet`` file, or of a Hub dataset."""
    file = Path(path)
    if file.suffix in {".jsonl", ".json", ".gz", ".parquet"} or file.exists():
        if not file.is_file():
            raise UserError(f"{path}: no such file")
        return list(_parquet_rows(file) if file.suffix == ".parquet" else _jsonl_rows(file))
    import datasets

    try:
        table = datasets.load_dataset(path, name, split=split)
    except Exception as error:  # the Hub has many ways to say no
        raise UserError(f"prompts: {path!r} is neither a file nor a dataset that loads: {_line(error)}") from error
    return [(f"{path}[{split}] row {i}", dict(row)) for i, row in enumerate(table)]


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _raw_lines(file: Path) -> Generator[bytes, None, None]:
    if file.suffix != ".gz":
        with file.open("rb") as lines:
            yield from lines
        return
    try:
        with gzip.open(file, "rb") as lines:
            yield from lines
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file}: not a whole gzip file ({_line(error)}); fetch it again") from None


def _jsonl_rows(file: Path) -> Iterator[Row]:
    with contextlib.closing(_raw_lines(file)) as lines:
        for number, raw in enumerate(lines, start=1):
            where = f"{file} line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{where}: not UTF-8; convert the file") from None
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where}: not JSON ({error}); one object per line is needed") from None
            if not isinstance(row, dict):
                raise UserError(f'{where}: a JSON object is needed, like {{"prompt": "…"}}')
            if "\\u" in line:  # nothing else brings half a pair
                _text(where, json.dumps(row, ensure_ascii=False))
            yield where, row


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a parquet file ({_line(error)})") from None
    for number, row in enumerate(rows):
        yield f"{file} row {number}", row


def parse(rows: Iterable[Row], column: str = "prompt") -> list[Prompt]:
    """Rows → prompts. The id is the column ``id``, or a hash of the row; other columns travel along."""
    prompts = []
    for where, row in rows:
        if column not in row:
            raise UserError(f"{where}: no column {column!r}; it has {', '.join(sorted(row)) or 'none'}")
        content = content_of(where, row[column])
        # As they will come back from disk, so that a reward sees the same types in every stage
        plain = json.loads(json.dumps(row, default=str))
        columns = {key: value for key, value in plain.items() if key not in {column, "id"}}
        key = row.get("id")
        stable = digest("prompt", json.dumps(row, sort_keys=True, default=str)).hex()
        prompts.append(Prompt(stable if key is None else str(key), content, columns))
    return prompts


def content_of(where: str, value: object) -> str | tuple[dict[str, str], ...]:
    """A column that holds a text or messages, as :class:`Prompt` takes it. UserError names the row."""
    if value is None or isinstance(value, str):
        return _text(where, value or "")
    if isinstance(value, list) and all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in value):
        return tuple({"role": str(turn["role"]), "content": _turn(where, turn["content"])} for turn in value)
    raise UserError(f"{where}: a prompt is a text or a list of {{role, content}} messages, not {type(value).__name__}")


def _text(where: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: half a surrogate pair is no text; write the character itself") from None
    return text


def _turn(where: str, content: object) -> str:
    """A message's text: a string, or a list of text parts."""
    if isinstance(content, str):
        return _text(where, content)
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return _text(where, "".join(str(part.get("text", "")) for part in content))
    raise UserError(f"{where}: a message's content is a text or a list of text parts, not {content!r:.60}")


def is_empty(prompt: Prompt) -> bool:
    """No text, or a chat without any."""
    if isinstance(prompt.content, str):
        return not prompt.content.strip()
    return not any(turn["content"].strip() for turn in prompt.content)


def tidy(
    prompts: Iterable[Prompt], length: Callable[[Prompt], int] | None = None, limit: int | None = None
) -> tuple[list[Prompt], dict[str, int]]:
    """Apply the rules above; return what stays and how many fell to each."""
    kept: dict[str, Prompt] = {}
    counts = {"rows": 0, "duplicate": 0, "empty": 0, "too_long": 0}
    for prompt in prompts:
        counts["rows"] += 1
        if is_empty(prompt):
            counts["empty"] += 1
        elif prompt.id in kept:
            counts["duplicate"] += 1
        elif length is not None and limit is not None and length(prompt) > limit:
            counts["too_long"] += 1
        else:
            kept[prompt.id] = prompt
    return list(kept.values()), counts


def fallen(counts: Mapping[str, int]) -> str:
    """Which rules took something and how many, for a message; empty where all stays."""
    return ", ".join(f"{count} {rule}" for rule, count in counts.items() if count and not rule.endswith("rows"))


def split(prompts: Sequence[Prompt], heldout: int | float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held-out): ``heldout`` prompts, or that fraction. Who is held out depends on seed and id, not order."""
    count = max(1, round(len(prompts) * heldout)) if isinstance(heldout, float) else heldout
    if count >= len(prompts):
        raise UserError(f"prompts.heldout: {count} of {len(prompts)} usable prompts would leave none to train on")
    by_address = sorted(prompts, key=lambda prompt: (seed_of(seed, "heldout", prompt.id), prompt.id))
    held = {prompt.id for prompt in by_address[:count]}
    return [p for p in prompts if p.id not in held], [p for p in prompts if p.id in held]


def split_groups(
    items: Sequence[Item], group: Callable[[Item], str], heldout: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """(train, held-out): that share of the items, in whole groups, so that what belongs together is never on both
    sides. Which groups are held out depends on seed and group, not on order. 0 holds nothing out."""
    if heldout == 0:
        return list(items), []
    groups: dict[str, int] = {}
    for item in items:
        groups[group(item)] = groups.get(group(item), 0) + 1
    wanted, held = max(1, round(len(items) * heldout)), set[str]()
    for one in sorted(groups, key=lambda one: (seed_of(seed, "heldout", one), one)):
        if wanted <= 0:
            break
        held.add(one)
        wanted -= groups[one]
    if len(held) == len(groups):
        raise UserError(f"--heldout {heldout}: of {len(items)} usable rows this would leave none to train on")
    return [i for i in items if group(i) not in held], [i for i in items if group(i) in held]


def subset(rows: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """``count`` of the rows, drawn by ``seed``, in their order; None or more than there are: all."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[at] for at in sorted(random.Random(seed_of(seed, "rows")).sample(range(len(rows)), count))]


def without(train: Sequence[Prompt], heldout: Sequence[Prompt]) -> list[Prompt]:
    """The training prompts that are not also held out, by id or by content."""
    ids = {prompt.id for prompt in heldout}
    contents = {json.dumps(prompt.content) for prompt in heldout}
    return [p for p in train if p.id not in ids and json.dumps(p.content) not in contents]


def draw(prompts: Sequence[Prompt], number: int, count: int, seed: int) -> list[Prompt]:
    """The ``count`` prompts of round ``number`` (from 1): without replacement until all were used, then reshuffled.

    Within a round no prompt comes twice: one that would is put off in the new order.
    """
    if count > len(prompts):
        raise UserError(f"sample.prompts_per_round: {count} is more than the {len(prompts)} training prompts")
    order: list[Prompt] = []
    drawn: list[Prompt] = []
    passes = 0
    for _ in range(number):
        if len(order) < count:
            rest = {prompt.id for prompt in order}
            fresh = list(prompts)
            random.Random(seed_of(seed, "draw", passes)).shuffle(fresh)
            order += [p for p in fresh if p.id not in rest] + [p for p in fresh if p.id in rest]
            passes += 1
        drawn, order = order[:count], order[count:]
    return drawn
