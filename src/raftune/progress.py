"""Progress of long work: stages say how far they are, whoever shows it decides how. Silent unless shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
Show = Callable[[str, int], tuple[Advance, Callable[[], None]]]

_show: list[Show] = []


@contextmanager
def shown_by(show: Show) -> Iterator[None]:
    """Within this block ``show(description, total) -> (advance, finish)`` displays the bars."""
    _show.append(show)
    try:
        yield
    finally:
        _show.remove(show)


@contextmanager
def bar(description: str, total: int) -> Iterator[Advance]:
    """Work of ``total`` units; the block calls what it gets with the units done since the last call."""
    advance, finish = _show[-1](description, total) if _show else (lambda n: None, lambda: None)
    try:
        yield advance
    finally:
        finish()
