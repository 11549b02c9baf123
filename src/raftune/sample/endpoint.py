"""The sampler of a black box: a model behind an OpenAI-compatible server. What was paid for is kept on disk."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ..endpoint import Answer, Endpoint, Request
from ..types import Candidate, Policy, Prompt, Text, digest, seed_of

log = logging.getLogger("raftune")
Line = dict[str, Any]


@dataclass(frozen=True)
class Journal:
    """Answers as they came, one JSON line each, by key; the lines of a killed process are there but for a torn one."""

    path: Path

    def read(self) -> dict[str, Line]:
        if not self.path.exists():
            return {}
        lines: dict[str, Line] = {}
        for raw in self.path.read_bytes().splitlines():
            try:
                line = json.loads(raw)
                lines[line["key"]] = line
            except (ValueError, KeyError, TypeError):  # torn by a kill, and asked for again
                continue
        return lines

    @contextmanager
    def writing(self) -> Iterator[IO[bytes]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            yield file

    @staticmethod
    def add(file: IO[bytes], line: Line) -> None:
        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class EndpointSampler:
    """Asks ``endpoint`` once per candidate, with the candidate's address as seed (as far as the server heeds it).

    A chat is sent as it is; a text is continued (completions), or with ``chat`` sent as one user message. Answers lie
    in ``folder / <source>.jsonl`` from the moment they arrive and are not asked for again. One that stays empty is no
    candidate; the figures count it.
    """

    endpoint: Endpoint
    max_new_tokens: int = 64
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    chat: bool = False
    folder: Path | None = None
    source: str = "endpoint"

    def sample(self, policy: Policy, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...]) -> list[Candidate]:
        """``k`` candidates of each prompt, fewer where the answer stayed empty; ``policy`` has no part in it."""
        pairs = [(prompt, index) for prompt in prompts for index in range(k)]
        requests = [self._request(prompt, (*seed, prompt.id, index)) for prompt, index in pairs]
        keys = [
            digest(self.endpoint.model, asdict(request), seed, prompt.id, index).hex()
            for (prompt, index), request in zip(pairs, requests, strict=True)
        ]
        journal = self._journal
        known = journal.read() if journal else {}
        missing = [row for row, key in enumerate(keys) if key not in known]
        with journal.writing() if journal else nullcontext() as file:

            def keep(at: int, answer: Answer) -> None:
                row = missing[at]
                known[keys[row]] = self._line(keys[row], seed, *pairs[row], answer)
                if file is not None:
                    Journal.add(file, known[keys[row]])

            self.endpoint.ask([requests[row] for row in missing], keep)
        found = [(pair, known[key]) for pair, key in zip(pairs, keys, strict=True)]
        candidates = [self._candidate(prompt, index, line) for (prompt, index), line in found if line["text"].strip()]
        if empty := len(found) - len(candidates):
            log.warning("%s: %d of %d answers stayed empty and are no candidates", self.source, empty, len(found))
        return candidates

    def figures(self, seed: tuple[object, ...]) -> dict[str, float]:
        """Of what was asked under an address: ``prompt_tokens``, ``completion_tokens``, ``cost`` (where there is a
        price) and ``empty``. Absent where the server does not count, and without a journal."""
        address = digest(*seed).hex()
        known = self._journal.read() if self._journal else {}
        lines = [line for line in known.values() if line["address"] == address]
        figures: dict[str, float] = {"empty": sum(not line["text"].strip() for line in lines)} if lines else {}
        for name in ("prompt_tokens", "completion_tokens", "cost") if lines else ():
            counts = [line[name] for line in lines]
            if None not in counts:
                figures[name] = sum(counts)
        return figures

    def _request(self, prompt: Prompt, address: tuple[object, ...]) -> Request:
        content = prompt.content
        if isinstance(content, str) and self.chat:
            content = ({"role": "user", "content": content},)
        seed = seed_of("endpoint", *address) % 2**31
        return Request(content, self.max_new_tokens, self.temperature, seed=seed, stop=self.stop)

    def _candidate(self, prompt: Prompt, index: int, line: Line) -> Candidate:
        finish = "stop" if line["finish_reason"] == "stop" else "length"  # cut by a filter is cut, too
        return Candidate(prompt, index, Text(line["text"], finish_reason=finish), self.source)

    def _line(self, key: str, seed: tuple[object, ...], prompt: Prompt, index: int, answer: Answer) -> Line:
        tokens = answer.prompt_tokens, answer.completion_tokens
        return {
            **{"key": key, "address": digest(*seed).hex(), "prompt_id": prompt.id, "index": index},
            **{"text": answer.texts[0], "finish_reason": answer.finish_reasons[0]},
            **{"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "cost": self.endpoint.cost(*tokens)},
        }

    @property
    def _journal(self) -> Journal | None:
        return None if self.folder is None else Journal(self.folder / f"{self.source}.jsonl")
