"""Completions of an OpenAI-compatible server: several at once, retried, paced, and kept as they arrive.

The package ``openai`` does the talking: its client waits and tries again where a server is busy (429), broken (5xx),
slow or out of reach, and honours Retry-After. What it does not see as a fault is tried again here, within the same
limit: answers that are no JSON, and empty ones.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from . import interrupt, progress
from .errors import UserError

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

MAX_WAIT = 8.0  # seconds between two tries, as the client's own
OPENAI = "api.openai.com"
T = TypeVar("T")
Choice = tuple[str, str]  # text, finish reason
Job = Callable[["AsyncOpenAI"], Coroutine[Any, Any, T]]


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in whatever currency."""

    input: float
    output: float


@dataclass(frozen=True)
class Request:
    """``messages``: a chat, or a plain text to go on with. ``n`` completions of at most ``max_tokens`` tokens."""

    messages: tuple[Mapping[str, str], ...] | str
    max_tokens: int
    temperature: float = 1.0
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """``texts``: as many as were asked for; one that stayed empty after all tries is "". Tokens are those of all tries,
    None where the server does not count them."""

    texts: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    prompt_tokens: int | None
    completion_tokens: int | None


def _ignore(index: int, brought: object) -> None:
    pass


@dataclass(frozen=True)
class Endpoint:
    """A model behind a server that speaks the OpenAI protocol.

    The key is read from the environment variable ``key_env`` and stands nowhere else; a server of your own (``url``)
    needs none. ``url`` None is OpenAI's. ``retries`` and ``timeout`` (seconds) are of one request; every try counts
    among ``requests_per_minute``. ``mend`` is what a user is told who gets no answer.
    """

    model: str
    url: str | None = None
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    retries: int = 5
    timeout: float = 60.0
    requests_per_minute: int | None = None
    price: Price | None = None
    mend: str = "what was collected is kept, the same command resumes"

    def ask(self, requests: Sequence[Request], keep: Callable[[int, Answer], None] = _ignore) -> list[Answer]:
        """The answers, in order; ``keep(index, answer)`` is called as each arrives.

        Raises:
            UserError: a request failed for good. Requests on their way are waited for and kept, no new one is sent.
            Interrupted: a signal asked for it; likewise.
        """
        with progress.bar("ask", len(requests)) as advance:

            def kept(index: int, answer: Answer) -> None:
                keep(index, answer)
                advance(1)

            return self.each([partial(self._answer, request=request) for request in requests], kept)

    def each(self, jobs: Sequence[Job[T]], keep: Callable[[int, T], None]) -> list[T]:
        """What these jobs bring, each of which gets the client; in order, as with :meth:`ask`."""
        return _run(self._each(jobs, keep)) if jobs else []

    def cost(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        """What so many tokens cost; None where price or tokens are not known."""
        if self.price is None or prompt_tokens is None or completion_tokens is None:
            return None
        return (prompt_tokens * self.price.input + completion_tokens * self.price.output) / 1e6

    @contextmanager
    def telling(self, tries: int = 0) -> Iterator[None]:
        """A fault of the client becomes one line, after so many tries before those of the client itself."""
        import openai

        try:
            yield
        except openai.APIError as error:
            retried = int(error.request.headers.get("x-stainless-retry-count", 0))
            raise self._failed(tries + retried + 1, self._reason(error)) from None

    async def _each(self, jobs: Sequence[Job[T]], keep: Callable[[int, T], None]) -> list[T]:
        found: dict[int, T] = {}
        faults: list[UserError] = []
        queue = iter(enumerate(jobs))

        async def work(client: AsyncOpenAI) -> None:
            while not faults and not interrupt.requested() and (todo := next(queue, None)) is not None:
                try:
                    brought = await todo[1](client)
                except UserError as fault:
                    faults.append(fault)
                else:
                    found[todo[0]] = brought
                    keep(todo[0], brought)

        async with self._client() as client:
            await asyncio.gather(*(work(client) for _ in range(min(self.concurrency, len(jobs)))))
        if faults:
            raise faults[0]
        if len(found) < len(jobs):
            interrupt.check()
        return [found[index] for index in range(len(jobs))]

    async def _answer(self, client: AsyncOpenAI, request: Request) -> Answer:
        """Ask until all ``n`` texts are there: many servers ignore n. Only tries that bring nothing count."""
        choices: list[Choice] = []
        usages: list[tuple[int | None, int | None]] = []
        tries = 0
        while missing := request.n - len(choices):
            raw = await self._call(client, request, missing, len(usages), tries)
            tries += raw.retries_taken + 1
            found, usage, fault = _read(raw, isinstance(request.messages, str))
            usages.append(usage)
            useful = [choice for choice in found if choice[0].strip()][:missing]
            choices += useful
            if useful:
                tries = 0
            elif tries > self.retries:
                if fault:
                    raise self._failed(tries, fault)
                choices += [("", found[0][1])] * missing
            else:
                await asyncio.sleep(min(0.5 * 2 ** (tries - 1), MAX_WAIT) if fault else 0)
        texts, reasons = zip(*choices, strict=True) if choices else ((), ())
        return Answer(texts, reasons, *map(_sum, zip(*usages, strict=True)))

    async def _call(self, client: AsyncOpenAI, request: Request, n: int, calls: int, tries: int) -> Any:
        """One call; the client retries it as often as is left. Another call for the same draws from another seed."""
        patient = client.with_options(max_retries=self.retries - tries)
        # OpenAI's newer models refuse the one name of the limit, other servers do not know the other
        limit = "max_completion_tokens" if client.base_url.host == OPENAI else "max_tokens"
        options: dict[str, Any] = {"model": self.model, "temperature": request.temperature}
        options |= {"n": n} if n > 1 else {}
        options |= {} if request.seed is None else {"seed": (request.seed + calls) % 2**31}
        options |= {"stop": list(request.stop)} if request.stop else {}
        with self.telling(tries):
            if isinstance(request.messages, str):
                options |= {"prompt": request.messages, "max_tokens": request.max_tokens}
                return await patient.completions.with_raw_response.create(**options)
            options |= {"messages": [dict(turn) for turn in request.messages], limit: request.max_tokens}
            return await patient.chat.completions.with_raw_response.create(**options)

    def _client(self) -> AsyncOpenAI:
        try:
            import openai
        except ImportError:
            raise UserError("an endpoint needs the package openai: pip install 'raftune[endpoint]'") from None
        if not self._key and self.url is None:
            raise UserError(f"endpoint {self.model}: no key in the environment variable {self.key_env}; set it")
        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [Pace(self.requests_per_minute)]})
        return openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=self.url, timeout=self.timeout, max_retries=0, http_client=http
        )

    @property
    def _key(self) -> str:
        return os.environ.get(self.key_env, "")

    def _reason(self, error: APIError) -> str:
        import openai

        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self.timeout:g} s"
        if isinstance(error, openai.APIConnectionError):
            return f"out of reach ({error.__cause__ or error})"
        said = error.body.get("message") if isinstance(error.body, Mapping) else None
        if not isinstance(error, openai.APIStatusError):
            return str(said or error.message)
        refused = f"the key in {self.key_env} is refused, " if error.status_code in {401, 403} else ""
        return f"{refused}{error.status_code} {said or error.message}"

    def _failed(self, tries: int, reason: str) -> UserError:
        line = " ".join((reason.replace(self._key, "***") if self._key else reason).split())
        where = f" at {self.url}" if self.url else ""
        return UserError(
            f"endpoint {self.model}{where}: no answer after {tries} {'try' if tries == 1 else 'tries'}: {line[:300]}; "
            f"{self.mend}"
        )


class Pace:
    """At most so many requests a minute, evenly: each is held until its turn."""

    def __init__(self, per_minute: int | None) -> None:
        self.gap = 60 / per_minute if per_minute else 0.0
        self.turn = 0.0

    async def __call__(self, request: object) -> None:
        now = time.monotonic()
        start = max(now, self.turn)
        self.turn = start + self.gap
        if start > now:
            await asyncio.sleep(start - now)


def _read(raw: Any, plain: bool) -> tuple[list[Choice], tuple[int | None, int | None], str | None]:
    """Choices, tokens of prompt and completion, and what is wrong with a body that has no choices."""
    try:
        parsed = raw.parse()
        usage = parsed.usage
        choices = list(_choices(parsed.choices, plain))
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
    except (ValueError, TypeError, AttributeError):  # no JSON, or another
        choices, tokens = [], (None, None)
    body = " ".join(raw.text.split())
    return choices, tokens, None if choices else f"not a completion: {body[:120]!r}"


def _choices(choices: Any, plain: bool) -> Iterator[Choice]:
    for choice in choices:
        text = choice.text if plain else choice.message.content
        whole = text.encode(errors="replace").decode() if isinstance(text, str) else ""  # half a surrogate pair is none
        yield whole, choice.finish_reason or "stop"


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _run(work: Coroutine[Any, Any, list[T]]) -> list[T]:
    """Here, or in a thread of its own where a loop already runs (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
