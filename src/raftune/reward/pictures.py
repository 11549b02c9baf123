"""What the rewards of pictures share: which are scored, how many at a time, and the prompts as texts. No torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .. import interrupt, progress
from ..errors import UserError
from ..picture import Picture
from ..types import Candidate

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("raftune")

Score = Callable[[Sequence[Candidate], Sequence["Image"]], Sequence[float]]
"""One number for each candidate of a batch; the second argument holds their pictures."""


def unflagged(name: str, candidates: Sequence[Candidate]) -> list[int]:
    """Rows of the pictures to score: all but those the safety checker replaced, which the log counts.

    UserError if an output is no picture.
    """
    for candidate in candidates:
        if not isinstance(candidate.output, Picture):
            kind = type(candidate.output).__name__
            raise UserError(
                f"reward {name!r} scores pictures; the output of prompt {candidate.prompt.id!r} is a {kind}"
            )
    rows = [row for row, candidate in enumerate(candidates) if not candidate.output.flagged]
    if len(rows) < len(candidates):
        hidden = len(candidates) - len(rows)
        log.warning("reward %r: %d of %d pictures flagged as unsafe, not scored", name, hidden, len(candidates))
    return rows


def in_batches(
    name: str, candidates: Sequence[Candidate], score: Score, description: str, size: int = 32
) -> list[float | None]:
    """``score`` on ``size`` pictures at a time; None for those that are flagged. Never called with none."""
    rows = unflagged(name, candidates)
    values: list[float | None] = [None] * len(candidates)
    with progress.bar(description, len(rows)) as advance:
        for start in range(0, len(rows), size):
            interrupt.check()
            batch = rows[start : start + size]
            some = [candidates[row] for row in batch]
            for row, value in zip(batch, score(some, [c.output.image for c in some]), strict=True):
                values[row] = value
            advance(len(batch))
    return values


def text_of(name: str, candidate: Candidate) -> str:
    """The prompt's own content. UserError if it is a chat."""
    content = candidate.prompt.content
    if not isinstance(content, str):
        raise UserError(f"reward {name!r}: prompt {candidate.prompt.id!r} is a chat; prompts must be texts")
    return content
