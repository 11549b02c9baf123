"""What a person sees in a terminal: rendered as a terminal would, read as text."""

from __future__ import annotations

import io
from typing import Any

from conftest import candidate
from rich.console import Console

from raftune import progress
from raftune.show import Show, before_after, rounds_table
from raftune.types import Scored


def rendered(what: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


ROWS = [
    {"round": 0, "heldout/reward_mean": 0.1, "heldout/perplexity": 30.0},
    {
        "round": 1,
        "sample/reward_mean": 0.1,
        "heldout/reward_mean": 0.5,
        "heldout/perplexity": 20.0,
        "time/round_s": 9.0,
    },
]


def test_the_table_has_a_dash_where_nothing_was_measured() -> None:
    lines = rendered(rounds_table(ROWS)).splitlines()
    assert lines[1].split() == ["round", "sampled", "held-out", "perplexity", "seconds"]
    assert lines[3].split() == ["0", "–", "0.100", "30.0", "–"]
    assert lines[4].split() == ["1", "0.100", "0.500", "20.0", "9.0"]


def test_the_table_fits_a_narrow_terminal() -> None:
    assert max(len(line) for line in rendered(rounds_table(ROWS), width=60).splitlines()) <= 60


def test_answers_are_shown_as_they_are() -> None:
    """Markup in a model's output is text, not colour."""
    pair = (Scored(candidate("p", 0, "[red]bad[/red] [/]"), -0.5), Scored(candidate("p", 0, "good"), None))
    text = rendered(before_after([pair], 3))
    assert "after round 3" in text
    assert "-0.50 [red]bad[/red] [/]" in text
    assert "not scored good" in text


def test_bars_come_and_go_and_rounds_stay() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    view = Show(console)
    with view.live():
        with progress.bar("decode", 10) as advance:
            advance(4)
            view._refresh(view.view(), refresh=True)
        for row in ROWS:
            view.round(row)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "decode" in shown
    assert "40%" in shown
    last = shown[shown.rindex("held-out") :]
    assert "0.500" in last
    assert "decode" not in last


def test_progress_is_silent_unless_shown() -> None:
    with progress.bar("sample", 3) as advance:
        advance(3)


def test_control_characters_do_not_reach_the_terminal() -> None:
    pair = (
        Scored(candidate("p", 0, "\x1b[2Jgone\x9b1m"), 1.0),
        Scored(candidate("p", 0, "tab\tand family 👨‍👩‍👧"), 1.0),
    )
    text = rendered(before_after([pair], 1))
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "[2Jgone" in text
    assert "👨‍👩‍👧" in text


def test_where_the_chosen_are_from_is_text() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    view = Show(console)
    row = {**ROWS[1], "won": "[/bold] \x1b[31mann 100%"}
    assert "[/bold]" in rendered(rounds_table([row]), 200)
    view.console = Console(file=io.StringIO(), width=200, force_terminal=False, markup=False)
    view.round({**ROWS[1], "chosen/source/[/bold] \x1b[31mann": 1.0})
    said = view.console.file.getvalue()  # type: ignore[attr-defined]
    assert "chosen from [/bold] �[31mann 100%" in said
