"""The contact sheet: held-out pictures before and after, the same prompts, the same noise. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..files import replacing
from ..types import Scored

CELL, GAP, MARGIN, TEXT = 72, 6, 16, 15  # pixels
ROWS, COLUMNS = 8, 8  # of cells, on each half
INK, PAPER, FRAME = (30, 30, 30), (250, 250, 248), (200, 200, 196)

Pair = tuple[Scored, Scored]


NAME = "contact-sheet.png"


def exhibit(before: Sequence[Scored], after: Sequence[Scored], round_number: int, folder: Path) -> str:
    """Write the contact sheet of what was drawn in both; say where."""
    later = {(one.candidate.prompt.id, one.candidate.index): one for one in after}
    keys = [(one.candidate.prompt.id, one.candidate.index) for one in before]
    pairs = [(one, later[key]) for one, key in zip(before, keys, strict=True) if key in later]
    if not pairs:
        return "no picture was drawn both before and after"
    write(folder / NAME, pairs, round_number)
    return f"before and after round {round_number}, same prompts and noise: {folder / NAME}"


def write(path: Path, pairs: Sequence[Pair], round_number: int) -> None:
    """Left the initial policy's pictures, right those of ``round_number``, each in its place; rows are prompts.

    ``pairs``: held-out candidates before and after, in order. A single prompt fills the rows with more of its pictures.
    """
    rows = layout(pairs)
    names = ("before", f"after round {round_number}")
    titles = [f"{name}: {_summary([pair[side] for pair in pairs])}" for side, name in enumerate(names)]
    label = max(_width(_label(row)) for row in rows) + GAP
    half = max(max(map(len, rows)) * (CELL + GAP) - GAP, *map(_width, titles))
    top = MARGIN + 2 * TEXT
    width = MARGIN + label + 2 * half + 3 * MARGIN
    sheet = Image.new("RGB", (width, top + len(rows) * (CELL + GAP) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = (MARGIN + label, MARGIN + label + half + 2 * MARGIN)
    for side, (left, title) in enumerate(zip(lefts, titles, strict=True)):
        draw.text((left, MARGIN // 2), title, INK, _font(TEXT))
        for at, row in enumerate(rows):
            y = top + at * (CELL + GAP)
            if side == 0 and (at == 0 or _label(row) != _label(rows[at - 1])):
                draw.text((MARGIN, y + CELL // 2 - TEXT // 2), _label(row), INK, _font(TEXT))
            for place, pair in enumerate(row):
                _paste(sheet, draw, pair[side], (left + place * (CELL + GAP), y))
    with replacing(path) as part:
        sheet.save(part, "png")


def layout(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """At most 8 rows of at most 8 pairs, a prompt a row: of more prompts evenly spaced ones, of fewer more rows."""
    prompts: dict[str, list[Pair]] = {}
    for pair in pairs:
        prompts.setdefault(str(pair[0].candidate.prompt.content), []).append(pair)
    groups = list(prompts.values())
    shown = [groups[place * len(groups) // ROWS] for place in range(ROWS)] if len(groups) > ROWS else groups
    each = max(1, ROWS // len(shown))
    return [
        members[at : at + COLUMNS]
        for members in shown
        for at in range(0, min(len(members), each * COLUMNS), COLUMNS)
    ]  # fmt: skip


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, one: Scored, place: tuple[int, int]) -> None:
    image = one.candidate.output.image
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    smooth = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    sheet.paste(image.resize(size, smooth), place)
    draw.rectangle((place[0] - 1, place[1] - 1, place[0] + size[0], place[1] + size[1]), outline=FRAME)


def _summary(members: Sequence[Scored]) -> str:
    said = []
    for name in members[0].parts:
        values = [value for one in members if (value := one.parts[name]) is not None]
        said += [f"{name} {sum(values) / len(values):.2f}"] if values else []
    return ", ".join(said) or "not scored"


def _label(row: Sequence[Pair]) -> str:
    text = str(row[0][0].candidate.prompt.content)
    return text if len(text) <= 28 else text[:27] + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _width(text: str) -> int:
    return round(_font(TEXT).getlength(text))
