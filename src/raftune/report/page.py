"""report.html: one run, or several side by side, as one file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader

from .. import __version__
from ..config import flatten
from ..errors import UserError
from ..files import replacing
from ..pick import Modality
from ..show import COLUMNS, columns_with, plain
from ..spread import Spread
from ..types import Content, Scored
from . import charts
from .record import REWARD, Record, about

NAME = "report.html"
PROMPTS, PICTURES, EXTREMES = 12, 8, 6  # shown: held-out prompts, pictures of each, candidates at either end
SIDE = 160  # pixels that a picture's longer side has on the page
LONGEST = 4000  # characters of an output, and of a prompt


def write(path: Path, records: Sequence[Record], live: bool = False) -> None:
    """The report of one run, or the comparison of several. ``live``: the page looks for a newer one by itself."""
    alone = len(records) == 1
    page = _run(records[0]) if alone else _runs(records)
    page |= {"written": time.strftime("%Y-%m-%d %H:%M:%S"), "version": __version__, "live": live}
    page["missing"] = [f"{one.name}: {line}" for one in records for line in one.missing]  # known when all was read
    environment = Environment(
        loader=PackageLoader("raftune.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    text = environment.get_template("run.html.jinja" if alone else "runs.html.jinja").render(page)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where it reads better."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _run(record: Record) -> dict[str, Any]:
    shown = record.best or record.last
    best, worst = record.extremes(record.last, EXTREMES)
    held = record.before_and_after(shown, PROMPTS, _each(record))
    said = partial(_said, record.modality)
    return {
        "title": record.name,
        "about": [(name, plain(value)) for name, value in about(record.recipe).items()],
        "state": _state(record),
        "cards": _cards(record),
        "alarms": [(row["round"], line) for row in record.rows for line in row.get("alarms", ())],
        "charts": charts.of_run(record),
        "table": _table(record),
        "shown": shown,
        "last": record.last,
        "held": [[(said(a), said(b)) for a, b in pairs] for pairs in held],
        "best": [said(one) for one in best],
        "worst": [said(one) for one in worst],
        "recipe": yaml.safe_dump(dict(record.recipe), sort_keys=False, allow_unicode=True),
    }


def _each(record: Record) -> int:
    """How many outputs of a held-out prompt are shown."""
    return PICTURES if record.modality.gallery else 1


def _state(record: Record) -> str:
    wanted = record.recipe.get("rounds")
    done = f"round {record.last}" + (f" of {wanted}" if wanted else "")
    best = record.best
    return done if best is None else f"{done}; the best so far is round {best}" if best else f"{done}; none is better"


def _cards(record: Record) -> list[dict[str, str]]:
    """Before, and at the best round: the figures that people ask for first."""
    shown = record.best or record.last
    names = {"held-out reward": REWARD} | {name.removeprefix("heldout/"): name for name in record.watched}
    names |= {"KL, nats": "heldout/kl", "perplexity": "heldout/perplexity", "distinct-2": "heldout/distinct_2"}
    names |= {"diversity": "heldout/diversity", "tokens an answer": "heldout/length_mean"}
    before, after = record.row(0), record.row(shown)
    cards = [
        {"name": name, "before": number(before[figure]), "after": number(after[figure])}
        for name, figure in names.items()
        if figure in before and figure in after
    ]
    seconds = sum(record.series("time/round_s")[1]) + sum(record.series("time/evaluate_s")[1])
    peaks = record.series("memory/peak_bytes")[1]
    cards += [{"name": "time, all rounds", "before": "", "after": _minutes(seconds)}] if seconds else []
    return cards + ([{"name": "peak memory", "before": "", "after": f"{max(peaks) / 1e9:.2f} GB"}] if peaks else [])


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d} h" if hours else f"{minutes}:{rest:02d} min"


def _table(record: Record) -> dict[str, Any]:
    """What the terminal shows of the rounds."""
    columns = columns_with(record.watched)
    keys = [key for key in columns if any(key in row for row in record.rows)]
    lines = [[columns[key][1].format(row[key]) if key in row else "–" for key in keys] for row in record.rows]
    return {"heads": [columns[key][0] for key in keys], "lines": lines, "best": record.best}


def _said(modality: Modality, one: Scored) -> dict[str, Any]:
    """An output as the page shows it. What a model wrote is text: the template escapes it."""
    output = one.candidate.output
    told = {
        "prompt": asked(one.candidate.prompt.content),
        "reward": "not scored" if one.reward is None else f"{one.reward:+.3f}",
        "parts": {name: number(value) for name, value in one.parts.items()} if len(one.parts) > 1 else {},
        "source": one.candidate.source,
    }
    if modality.gallery:
        return told | {"picture": _picture(modality, output), "text": ""}
    return told | {"text": cut(modality.shown(output))}


def asked(content: Content) -> str:
    """A prompt as text, a chat as its turns; as long as a page can bear."""
    if isinstance(content, str):
        return cut(content)
    return cut("\n\n".join(f"{turn['role']}: {turn['content']}" for turn in content))


def cut(text: str) -> str:
    """A text as long as a page can bear."""
    text = plain(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters in all)"


def _picture(modality: Modality, output: Any) -> str | None:
    """As a data address; None where the file is gone or damaged."""
    try:
        return data_address(modality.shown(output))
    except UserError:
        return None


def data_address(picture: Path | Any, side: int = SIDE) -> str | None:
    """A picture (PIL), or that in a file, as it stands in a page, its longer side of so many pixels; None where there
    is none. A small one keeps its pixels; of a large one a copy to look at (WebP)."""
    from PIL import Image

    try:
        image = Image.open(picture).convert("RGB") if isinstance(picture, Path) else picture
    except OSError:
        return None
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    how, kind, options = Image.Resampling.NEAREST, "png", {"optimize": True}
    if scale < 1:
        how, kind, options = Image.Resampling.LANCZOS, "webp", {"quality": 90}
    stream = io.BytesIO()
    image.resize(size, how).save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _runs(records: Sequence[Record]) -> dict[str, Any]:
    groups = grouped(records)
    figures = [REWARD, *dict.fromkeys(name for one in records for name in one.watched), *list(charts.COMPARED)[1:]]
    figures = [name for name in figures if any(one.series(name)[0] for one in records)]
    heads, lines = [*[COLUMNS.get(name, (name.removeprefix("heldout/"),))[0] for name in figures], "seconds"], []
    for label, members in groups.items():
        values = {name: [one.row(one.best or one.last).get(name) for one in members] for name in figures}
        values["seconds"] = [sum(one.series("time/round_s")[1]) for one in members]
        lines.append([label, str(len(members)), *map(_spread, values.values())])
    return {
        "title": "Runs compared",
        "charts": charts.of_runs(groups),
        "heads": ["run", "seeds", *heads],
        "lines": lines,
        "answers": _side_by_side({label: members[0] for label, members in groups.items()}),
        "differences": _differences(records),
    }


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = Spread.over(known)
    return number(spread.mean) if len(known) < 2 else f"{number(spread.mean)} ± {number(spread.deviation)}"


def grouped(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Runs that differ by nothing but their seed stand together, under the first one's name."""
    groups: dict[str, list[Record]] = {}
    for one in records:
        groups.setdefault(_settings(one), []).append(one)
    named: dict[str, list[Record]] = {}
    for members in groups.values():
        name = members[0].name
        while name in named:
            name = f"{name}'"
        named[name] = members
    return named


def _settings(record: Record) -> str:
    own = {key: value for key, value in record.recipe.items() if key not in {"seed", "out", "keep", "rounds"}}
    return json.dumps(own, sort_keys=True, default=str) if own else str(record.folder.resolve())


def _differences(records: Sequence[Record]) -> list[list[str]]:
    """The settings in which the runs differ, a line each, a column a run."""
    flat = [flatten(one.recipe) for one in records]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key not in {"out", "keep"}]
    differing = [key for key in keys if len({json.dumps(one.get(key), default=str) for one in flat}) > 1]
    lines = [[key, *("–" if one.get(key) is None else str(one[key]) for one in flat)] for key in differing]
    return [["", *(one.name for one in records)], *lines] if lines else []


def _side_by_side(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """What the runs' best rounds say to the same held-out prompts, and what the first one's model said before."""
    first = next(iter(records.values()))
    found: dict[str, dict[str, Any]] = {}
    for label, record in records.items():
        said = partial(_said, record.modality)
        for pairs in record.before_and_after(record.best or record.last, 4 * PROMPTS, _each(record)):
            prompt = pairs[0][0].candidate.prompt
            if record is first:
                befores = [said(before) for before, _ in pairs]
                found[prompt.id] = {"prompt": asked(prompt.content), "said": {"before": befores}}
            if prompt.id in found:
                found[prompt.id]["said"][label] = [said(after) for _, after in pairs]
    return [one for one in found.values() if len(one["said"]) > len(records)][:PROMPTS]
