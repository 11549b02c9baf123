"""Drawings as SVG that takes its colours from the page around it, so that one file is right in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..plots import figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#010101", "#020202"  # stand for the page's own, as do the series'
SERIES = tuple(f"#0304{number:02x}" for number in range(1, 9))
STYLE: Any = {  # matplotlib's own names of settings
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.alpha": 1.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.markersize": 4.0,
}


@dataclass(frozen=True)
class Chart:
    """A drawing with a title, and a sentence that tells the same."""

    name: str
    title: str
    told: str
    svg: str


def drawn(name: str, title: str, told: str, draw: Callable[[Axes], None]) -> Chart:
    """``draw(axes)`` draws it. ``name`` keeps the parts of one drawing apart from another's in the same page."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, (axes,) = figure_of(1)
        axes.set_prop_cycle(color=list(SERIES))
        axes.grid(visible=True, alpha=1.0, linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
        return Chart(name, title, told, _svg(figure, name))


def _svg(figure: Figure, name: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in [(INK, "ink"), (GRID, "grid"), *((one, f"c{at}") for at, one in enumerate(SERIES, 1))]:
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
