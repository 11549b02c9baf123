"""Rewards that are Python functions: ``f(prompts, completions, **columns) -> list[float | None]`` for texts, as TRL's;
``f(images, prompts, **columns)`` for pictures."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..errors import UserError
from ..picture import Picture
from ..protocols import Reward
from ..score import RewardError, Rewards, Weighted
from ..types import Candidate, digest
from .pictures import unflagged

Function = Callable[..., Any]


@dataclass(frozen=True)
class FunctionReward:
    """A function of lists, called with keywords: ``prompts``, ``completions``, ``completion_ids`` and one list per
    other column of the prompts. It is given those that it names (all of them if it takes ``**kwargs``).

    As in TRL a text prompt comes with a text completion; a chat comes as messages, its completion as one assistant
    message. Where the outputs are pictures it is given ``images`` (PIL, RGB) instead of the completions, and those
    that the safety checker replaced are neither handed to it nor scored. A coroutine function is awaited.
    ``elsewhere``: the work is done by another process or machine (see :class:`raftune.protocols.Reward`). ``told``:
    what the caller has to say besides, by keyword, the same for all outputs.
    """

    function: Function
    name: str
    elsewhere: bool = False
    told: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def version(self) -> str:
        """Changes when the file that defines the function does."""
        try:
            file = inspect.getsourcefile(inspect.unwrap(self.function))
        except TypeError:  # a partial, an object, a builtin
            file = None
        return digest(Path(file).read_bytes()).hex() if file and Path(file).exists() else ""

    def __call__(self, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        if not any(isinstance(candidate.output, Picture) for candidate in candidates):
            return self._called(candidates)
        rows = unflagged(self.name, candidates)
        found = list(self._called([candidates[row] for row in rows])) if rows else []
        if len(found) != len(rows):
            raise RewardError(f"reward {self.name!r} returned {len(found)} values for {len(rows)} pictures")
        values = dict(zip(rows, found, strict=True))
        return [values.get(row) for row in range(len(candidates))]

    def _called(self, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        result = self.function(**self._arguments(candidates))
        if not inspect.isawaitable(result):
            return result
        with ThreadPoolExecutor(1) as thread:  # of its own: in a notebook this thread already has a running loop
            return thread.submit(asyncio.run, _wait(result)).result()

    def _arguments(self, candidates: Sequence[Candidate]) -> dict[str, Any]:
        parameters = inspect.signature(self.function).parameters.values()
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        columns = {name for candidate in candidates for name in candidate.prompt.columns}
        lists: dict[str, Callable[[Candidate], Any]] = {
            **{name: _column(name) for name in columns},
            "prompts": _prompt,
            **_outputs(candidates),
        }
        needed = {
            p.name for p in parameters if p.default is p.empty and p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}
        }
        known = lists.keys() | self.told.keys()
        if missing := sorted(needed - known):
            raise UserError(f"reward {self.name!r}: {_lacking(missing[0], candidates, columns)}")
        wanted = known if takes_all else known & {p.name for p in parameters}
        found = {name: [lists[name](candidate) for candidate in candidates] for name in lists if name in wanted}
        return found | {name: value for name, value in self.told.items() if name in wanted}


TEXT_ONLY = ("completions", "completion_ids")


def _outputs(candidates: Sequence[Candidate]) -> dict[str, Callable[[Candidate], Any]]:
    if candidates and isinstance(candidates[0].output, Picture):
        return {"images": lambda candidate: candidate.output.image}
    return {"completions": _completion, "completion_ids": lambda candidate: list(candidate.output.token_ids or ())}


def _lacking(name: str, candidates: Sequence[Candidate], columns: set[str]) -> str:
    """What to tell of a function that asks for something there is not."""
    pictures = bool(candidates) and isinstance(candidates[0].output, Picture)
    if pictures and name in TEXT_ONLY:
        return f"asks for {name!r}, but the outputs are pictures; name `images` instead"
    if not pictures and name == "images":
        return "asks for 'images', but the outputs are texts; name `completions` instead"
    return f"needs the column {name!r}; the prompts have {', '.join(sorted(columns)) or 'none'}"


def _column(name: str) -> Callable[[Candidate], Any]:
    return lambda candidate: candidate.prompt.columns.get(name)


async def _wait(result: Any) -> Any:
    return await result


def _prompt(candidate: Candidate) -> Any:
    content = candidate.prompt.content
    return content if isinstance(content, str) else [dict(turn) for turn in content]


def _completion(candidate: Candidate) -> Any:
    text = candidate.output.text
    return [{"role": "assistant", "content": text}] if candidate.prompt.is_chat else text


def rewards(*functions: Function | Reward, told: Mapping[str, Any] | None = None) -> Rewards:
    """The sum of these functions (TRL's signature) or rewards, each named after itself. ``told``: see
    :class:`FunctionReward`."""
    return Rewards(
        tuple(
            Weighted(cast(Reward, f) if hasattr(f, "name") else FunctionReward(f, _name(f), told=dict(told or {})))
            for f in functions
        )
    )


def _name(function: Function) -> str:
    """The function's; of a partial that of what it calls, of an object that of its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
