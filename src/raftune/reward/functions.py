"""Rewards that are Python functions, as TRL's: ``f(prompts, completions, **columns) -> list[float | None]``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import UserError
from ..protocols import Reward
from ..score import Rewards, Weighted
from ..types import Candidate, digest

Function = Callable[..., Any]


@dataclass(frozen=True)
class FunctionReward:
    """A function of lists, called with keywords: ``prompts``, ``completions``, ``completion_ids`` and one list per
    other column of the prompts. It is given those that it names (all of them if it takes ``**kwargs``).

    As in TRL a text prompt comes with a text completion; a chat comes as messages, its completion as one assistant
    message. A coroutine function is awaited.
    """

    function: Function
    name: str

    @property
    def version(self) -> str:
        """Changes when the file that defines the function does."""
        try:
            file = inspect.getsourcefile(inspect.unwrap(self.function))
        except TypeError:  # a partial, an object, a builtin
            file = None
        return digest(Path(file).read_bytes()).hex() if file and Path(file).exists() else ""

    def __call__(self, candidates: Sequence[Candidate]) -> Sequence[float | None]:
        result = self.function(**self._arguments(candidates))
        if not inspect.isawaitable(result):
            return result
        with ThreadPoolExecutor(1) as thread:  # of its own: in a notebook this thread already has a running loop
            return thread.submit(asyncio.run, _wait(result)).result()

    def _arguments(self, candidates: Sequence[Candidate]) -> dict[str, list[Any]]:
        columns = {name for candidate in candidates for name in candidate.prompt.columns}
        given: dict[str, list[Any]] = {
            **{name: [c.prompt.columns.get(name) for c in candidates] for name in columns},
            "prompts": [_prompt(c) for c in candidates],
            "completions": [_completion(c) for c in candidates],
            "completion_ids": [list(c.output.token_ids or ()) for c in candidates],
        }
        parameters = inspect.signature(self.function).parameters.values()
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        needed = {
            p.name for p in parameters if p.default is p.empty and p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}
        }
        if missing := sorted(needed - given.keys()):
            raise UserError(
                f"reward {self.name!r}: needs the column {missing[0]!r}; "
                f"the prompts have {', '.join(sorted(columns)) or 'none'}"
            )
        return given if takes_all else {p.name: given[p.name] for p in parameters if p.name in given}


async def _wait(result: Any) -> Any:
    return await result


def _prompt(candidate: Candidate) -> Any:
    content = candidate.prompt.content
    return content if isinstance(content, str) else [dict(turn) for turn in content]


def _completion(candidate: Candidate) -> Any:
    text = candidate.output.text
    return [{"role": "assistant", "content": text}] if candidate.prompt.is_chat else text


def rewards(*functions: Function | Reward) -> Rewards:
    """The sum of these functions (TRL's signature) or rewards, each named after itself."""
    return Rewards(
        tuple(
            Weighted(
                cast(Reward, f) if hasattr(f, "name") else FunctionReward(f, getattr(f, "__name__", type(f).__name__))
            )
            for f in functions
        )
    )
