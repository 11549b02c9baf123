"""The sampler of answers that are already there: people's, another system's, an earlier run's."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import UserError
from ..pool import PoolRow, content_key
from ..types import Candidate, Policy, Prompt, Text, seed_of

log = logging.getLogger("raftune")


@dataclass(frozen=True)
class PoolSampler:
    """Gives each prompt at most ``k`` of the rows that are of its id or its content; which, where there are more, is
    drawn. Rows keep their order and their own ``source``; empty answers are left out.

    Token ids in a row are kept where the policy's tokenizer reads them as the row's text; else the text is what counts.
    """

    rows: tuple[PoolRow, ...]
    name: str = "pool"
    source: str = "pool"

    def sample(
        self, policy: Policy, prompts: Sequence[Prompt], k: int | None, seed: tuple[object, ...]
    ) -> list[Candidate]:
        """Up to ``k`` candidates of each prompt, all with None; see :class:`raftune.protocols.Sampler`."""
        candidates = []
        for prompt in prompts:
            rows = self.rows_of(prompt)
            if k is not None and len(rows) > k:
                chosen = random.Random(seed_of("pool", *seed, prompt.id)).sample(range(len(rows)), k)
                rows = [rows[place] for place in sorted(chosen)]
            candidates += [
                Candidate(prompt, index, row.output, row.source or self.source) for index, row in enumerate(rows)
            ]
        return _readable(policy, candidates)

    def rows_of(self, prompt: Prompt) -> list[PoolRow]:
        """The answers to a prompt, by its id or its content, in the order of the file."""
        by_id, by_content = self._index
        return [self.rows[at] for at in sorted({*by_id.get(prompt.id, ()), *by_content.get(content_key(prompt), ())})]

    def covers(self, prompt: Prompt) -> bool:
        """Is there an answer to this prompt?"""
        return bool(self.rows_of(prompt))

    def check(self, train: Sequence[Prompt], heldout: Sequence[Prompt]) -> None:
        """Say which rows are of no prompt and which prompts have no answer; UserError where nothing matches."""
        used = {row.where for prompt in train for row in self.rows_of(prompt)}
        idle = {row.where for prompt in heldout for row in self.rows_of(prompt)} - used
        empty = [row for row in self.rows if not row.output.text.strip()]
        lost = [row for row in self.rows if row.where not in used | idle and row.output.text.strip()]
        if not used:
            example = f", e.g. {_shown(lost[0])}" if lost else ""
            raise UserError(f"pool {self.name}: none of its {len(self.rows)} rows matches a training prompt{example}")
        for rows, fault in (lost, "match no prompt"), (empty, "have an empty answer and are left out"):
            if rows:
                log.warning(
                    "pool %s: %d of %d rows %s, e.g. %s", self.name, len(rows), len(self.rows), fault, _shown(rows[0])
                )
        if idle:
            log.info("pool %s: %d rows are of held-out prompts and are not used", self.name, len(idle))
        others = {
            row.where: row
            for prompt in train
            for row in self.rows_of(prompt)
            if row.content not in {None, content_key(prompt)}
        }
        if others:
            log.warning(
                "pool %s: %d of %d rows have the id of a training prompt and another text, and count as answers to it, "
                "e.g. %s; leave out prompt_id where ids are of other prompts",
                *(self.name, len(others), len(self.rows), _shown(next(iter(others.values())))),
            )
        if without := [prompt.id for prompt in train if not self.covers(prompt)]:
            log.warning(
                "pool %s: %d of %d training prompts have no answer, e.g. %r",
                *(self.name, len(without), len(train), without[0]),
            )

    @cached_property
    def _index(self) -> tuple[Mapping[str, list[int]], Mapping[str, list[int]]]:
        by_id: dict[str, list[int]] = {}
        by_content: dict[str, list[int]] = {}
        for at, row in enumerate(self.rows):
            if row.output.text.strip():
                if row.prompt_id is not None:
                    by_id.setdefault(row.prompt_id, []).append(at)
                if row.content is not None:
                    by_content.setdefault(row.content, []).append(at)
        return by_id, by_content


def _shown(row: PoolRow) -> str:
    place = " ".join(row.where.split()[-2:])
    said = repr(row.prompt_id) if row.prompt is None else f"{str(row.prompt.content)!r:.60}"
    return f"{place} {said}"


def _readable(policy: Policy, candidates: list[Candidate]) -> list[Candidate]:
    """Token ids of another tokenizer are not ours to learn from."""
    if all(candidate.output.token_ids is None for candidate in candidates):
        return candidates
    from ..models import load_tokenizer
    from ..tokens import reads_as

    tokenizer = load_tokenizer(policy)

    def read(output: Text) -> Text:
        return output if reads_as(tokenizer, output) else replace(output, token_ids=None)

    checked = [replace(candidate, output=read(candidate.output)) for candidate in candidates]
    if others := sum(
        old.output.token_ids != new.output.token_ids for old, new in zip(candidates, checked, strict=True)
    ):
        log.warning("pool: the token ids of %d rows are another tokenizer's; their text counts", others)
    return checked
