"""What the rewards of texts share: their texts, one question of each, and what the log says. No torch."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence

from .. import interrupt, progress
from ..errors import UserError
from ..types import Candidate, Text

log = logging.getLogger("raftune")


def texts_of(name: str, candidates: Sequence[Candidate]) -> list[str]:
    """UserError if an output is no text."""
    for candidate in candidates:
        if not isinstance(candidate.output, Text):
            kind = type(candidate.output).__name__
            raise UserError(f"reward {name!r} scores texts; the output of prompt {candidate.prompt.id!r} is a {kind}")
    return [candidate.output.text for candidate in candidates]


def each(
    name: str, candidates: Sequence[Candidate], answer: Callable[[Candidate], bool | None], seconds: float
) -> list[float | None]:
    """1 or 0 for each; None where there is no answer within ``seconds`` of CPU time, which the log counts."""
    values: list[float | None] = []
    with progress.bar(name, len(candidates)) as advance:
        for candidate in candidates:
            interrupt.check()
            found = answer(candidate)
            values.append(None if found is None else float(found))
            advance(1)
    if slow := values.count(None):
        log.warning("reward %r: %d of %d outputs not scored: no answer in %g s", name, slow, len(values), seconds)
    return values


def need(name: str, module: str, package: str) -> None:
    """UserError if a package of the extra ``verify`` is not there."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"reward {name!r} needs the package {package}; pip install 'raftune[verify]'")
