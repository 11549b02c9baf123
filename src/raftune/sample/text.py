"""The text sampler: K continuations of each prompt from a decoder-only transformers model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .. import progress
from ..errors import UserError
from ..models import Tokenizer
from ..resident import causal
from ..tokens import encode_prompt
from ..types import Candidate, Policy, Prompt, Text
from .decode import Drawn, Stop, Work, decode_generate, decode_shared
from .draw import Temper, uniforms
from .probe import prepare, restore

MAX_ROWS = {"cpu": 256, "mps": 256, "cuda": 1024}  # where more rows no longer make a step cheaper per row
CACHE_SHARE = {"cpu": 0.1, "mps": 0.3, "cuda": 0.3}  # of all memory, for keys and values


@dataclass(frozen=True)
class TextSampler:
    """Samples with temperature (paper: λ), then top-k, then top-p; ``top_k=1`` is greedy.

    A candidate ends at end-of-sequence, at a stop string (kept in ``token_ids``, cut from ``text``), or after
    ``max_new_tokens``. ``batch_rows`` caps the candidates decoded at once; by default the device decides.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    batch_rows: int | None = None
    source: str = "policy"

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise UserError("sample.stop: an empty stop string would end every answer at once")

    @property
    def temper(self) -> Temper:
        return Temper(self.temperature, self.top_k, self.top_p)

    def sample(
        self, policy: Policy, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...], first: int = 0
    ) -> list[Candidate]:
        """``k`` candidates of each prompt, in order, the first with the index ``first``; see
        :class:`raftune.protocols.Sampler`."""
        if k < 1:
            raise UserError(f"sample.k: {k} candidates per prompt; at least 1 is needed")
        if not prompts:
            return []
        model, tokenizer = causal(policy)
        stop = Stop.of(model, tokenizer, self.stop)
        ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        check_length(prompts, [len(one) for one in ids], self.max_new_tokens, limit)
        pairs = [(row, index) for row in range(len(prompts)) for index in range(first, first + k)]
        found: dict[tuple[int, int], Drawn] = {}
        with progress.bar("decode", len(pairs) * self.max_new_tokens) as advance:
            for batch in plan(
                pairs, [len(one) for one in ids], self._rows(model), self._tokens(model), self.max_new_tokens
            ):
                rows = list(dict.fromkeys(row for row, _ in batch))
                addresses = [(*seed, prompts[row].id, index) for row, index in batch]
                owner = [rows.index(row) for row, _ in batch]
                work = Work([ids[row] for row in rows], owner, uniforms(addresses, self.max_new_tokens))
                drawn = self._decode(model, work, stop, advance)
                found.update(zip(batch, drawn, strict=True))
        return [
            candidate(tokenizer, prompts[row], index, found[row, index], self.stop, self.source) for row, index in pairs
        ]

    def planned(self, policy: Policy, lengths: Sequence[int], k: int) -> list[list[tuple[int, int]]]:
        """The batches of (prompt, index) in which ``k`` candidates of prompts of these lengths (tokens) are decoded."""
        model, _ = causal(policy)
        pairs = [(row, index) for row in range(len(lengths)) for index in range(k)]
        return plan(pairs, lengths, self._rows(model), self._tokens(model), self.max_new_tokens)

    def _decode(
        self,
        model: PreTrainedModel,
        work: Work,
        stop: Stop,
        advance: Callable[[int], None],
    ) -> list[Drawn]:
        longest = max(len(one) for one in work.prompt_ids) + work.uniforms_NT.shape[1]
        if prepare(model, longest):
            try:
                return decode_shared(model, work, self.temper, stop, advance)
            finally:
                restore(model)
        return decode_generate(model, work, self.temper, stop, advance)

    def _rows(self, model: PreTrainedModel) -> int:
        return self.batch_rows or MAX_ROWS[model.device.type]

    def _tokens(self, model: PreTrainedModel) -> int:
        """How many tokens' keys and values fit. From all memory, not what is free now: the same batches every time."""
        config = model.config.get_text_config()
        layers, hidden = getattr(config, "num_hidden_layers", 1), getattr(config, "hidden_size", 1)
        query_heads = getattr(config, "num_attention_heads", None) or 1
        heads = getattr(config, "num_key_value_heads", None) or query_heads
        width = getattr(config, "head_dim", None) or hidden // query_heads
        per_token = max(1, 2 * layers * heads * width) * model.dtype.itemsize
        return max(1, int(memory_of(model.device) * CACHE_SHARE[model.device.type] / per_token))


def check_length(prompts: Sequence[Prompt], lengths: Sequence[int], new: int, limit: int | None) -> None:
    """UserError where a prompt of so many tokens leaves no room for ``new`` ones below the model's ``limit``."""
    longest = max(range(len(lengths)), key=lambda row: lengths[row])
    if limit is not None and lengths[longest] + new > limit:
        raise UserError(
            f"sample: prompt {prompts[longest].id!r} has {lengths[longest]} tokens; with {new} new ones it "
            f"passes the model's {limit}; lower prompts.max_tokens or sample.max_new_tokens"
        )


def candidate(
    tokenizer: Tokenizer, prompt: Prompt, index: int, drawn: Drawn, stop: Sequence[str], source: str
) -> Candidate:
    """What was drawn as a candidate: its text ends where a stop string begins."""
    text = tokenizer.decode(drawn.token_ids, skip_special_tokens=True)
    for string in stop if drawn.stopped else ():
        text = text.split(string, 1)[0]
    output = Text(text, drawn.token_ids, drawn.logprobs, "stop" if drawn.stopped else "length")
    return Candidate(prompt, index, output, source, sum(drawn.logprobs))


def memory_of(where: torch.device) -> int:
    """All the memory there is, in bytes: not what is free now, which is another every time."""
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[1]
    import psutil

    return psutil.virtual_memory().total


def plan(
    pairs: Sequence[tuple[int, int]], lengths: Sequence[int], max_rows: int, max_tokens: int, new_tokens: int
) -> list[list[tuple[int, int]]]:
    """Batches of (prompt, index) pairs: prompts of like length together, at most ``max_rows`` rows and ``max_tokens``
    tokens of cache (a prompt counts once, its continuations each), at least one row. Pairs of a prompt stay adjacent.
    """
    batches: list[list[tuple[int, int]]] = []
    batch: list[tuple[int, int]] = []
    tokens = 0
    for pair in sorted(pairs, key=lambda pair: (lengths[pair[0]], *pair)):
        new_prompt = not batch or batch[-1][0] != pair[0]
        cost = new_tokens + (lengths[pair[0]] if new_prompt else 0)
        if batch and (len(batch) == max_rows or tokens + cost > max_tokens):
            batches.append(batch)
            batch, tokens, cost = [], 0, new_tokens + lengths[pair[0]]
        batch.append(pair)
        tokens += cost
    return [[*b] for b in (*batches, batch) if b]
