"""The text learner: supervised fine-tuning on the chosen outputs (paper, algorithm 1, the last step of a round)."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate.utils import set_seed

from .. import files
from ..batches import Pair, collate, output_logprobs, sizes, within_budget
from ..errors import UserError
from ..models import Tokenizer, attend, compute_dtype, device, load_tokenizer, quiet
from ..tokens import encode_prompt, output_ids
from ..types import Policy, Scored, digest, seed_of
from .lora import Lora
from .session import Options, Session
from .trainee import Adapted, Whole


@dataclass(frozen=True, kw_only=True)
class TextLearner(Options):
    """Fine-tunes all parameters, or a LoRA adapter, on the drawn token ids: the loss is the mean negative
    log-likelihood of the output tokens of an optimiser step; the prompt carries no loss.

    ``batch_size`` outputs make an optimiser step, whatever the memory: within it as many go through the model at once
    as ``batch_tokens`` padded tokens allow, the rest by gradient accumulation. The optimiser (AdamW) and the schedule
    start anew each round, as in the paper; ``optimizer="carry"`` keeps the moments. Every ``save_steps`` steps, and
    when a signal asks to stop, the state is saved beside the checkpoint, and a resumed tuning goes on from there.
    """

    epochs: int = 1
    batch_tokens: int = 4096
    lora: Lora | None = None

    def tune(self, policy: Policy, chosen: Sequence[Scored], out: Path, seed: tuple[object, ...]) -> Policy:
        """Write the tuned checkpoint to ``out``: a model folder, or an adapter folder with ``lora``."""
        if not chosen:
            raise UserError("tune: nothing to learn from")
        tokenizer = load_tokenizer(policy)
        pairs = [
            (
                encode_prompt(tokenizer, one.candidate.prompt),
                output_ids(tokenizer, one.candidate.output, one.candidate.prompt.is_chat),
            )
            for one in chosen
        ]
        pairs = [(prompt, output) for prompt, output in pairs if output]
        if not pairs:
            raise UserError("tune: every chosen output is empty")
        return self._learn(policy, tokenizer, pairs, out, seed)

    def learn(self, policy: Policy, pairs: Sequence[Pair], out: Path, seed: tuple[object, ...]) -> Policy:
        """The same from token ids: of each pair the prompt's, which carry no loss, and the output's."""
        return self._learn(policy, load_tokenizer(policy), pairs, out, seed)

    def _learn(
        self, policy: Policy, tokenizer: Tokenizer, pairs: Sequence[Pair], out: Path, seed: tuple[object, ...]
    ) -> Policy:
        start = time.perf_counter()
        trainee = self._trainee(policy, seed)
        session = self._fit(trainee, policy, pairs, out, seed)
        with files.replacing_folder(out) as part:
            with quiet():
                session.model.save_pretrained(part)
                tokenizer.save_pretrained(part)
            seconds = time.perf_counter() - start
            tokens = sum(len(prompt) + len(output) for prompt, output in pairs) * self.epochs
            figures = {"loss": session.loss, "steps": session.total, "tokens": tokens}
            if not session.resumed:  # a tuning that was cut in two has no rate of its own
                figures["tokens_per_s"] = tokens / seconds
            files.write_json(part / files.FIGURES, figures)
            session.keep_moments()
        session.clean()
        session.release()  # gradients and moments go before anything else comes
        with quiet():
            trainee.give_back(out, tokenizer)
        return out

    def fit(self, policy: Policy, pairs: Sequence[Pair], out: Path, seed: tuple[object, ...]) -> Session:
        """The steps alone, nothing written but their state beside ``out``."""
        return self._fit(self._trainee(policy, seed), policy, pairs, out, seed)

    def _trainee(self, policy: Policy, seed: tuple[object, ...]) -> Whole | Adapted:
        set_seed(seed_of("tune", *seed) % 2**32)  # LoRA's initial weights and dropout draw from the global generator
        if self.lora is None:
            return Whole(policy, self.gradient_checkpointing)
        return Adapted(policy, self.gradient_checkpointing, self.lora)

    def _fit(
        self, trainee: Whole | Adapted, policy: Policy, pairs: Sequence[Pair], out: Path, seed: tuple[object, ...]
    ) -> Session:
        steps = self.steps(pairs, seed)
        attend(trainee.transformer, max(len(prompt) + len(output) for prompt, output in pairs))
        identity = digest(asdict(self), str(policy), pairs, seed).hex()
        mixed = compute_dtype(device()) == torch.bfloat16
        session = Session(self, trainee.model, policy, out, len(steps), identity, mixed)
        session.run(lambda number: self._backward(session, steps[number]))
        return session

    def steps(self, pairs: Sequence[Pair], seed: tuple[object, ...]) -> list[list[Pair]]:
        """The outputs of each optimiser step: of like length, in an order that depends on the address alone."""
        steps = []
        for epoch in range(self.epochs):
            order = list(range(len(pairs)))
            shuffle = random.Random(seed_of("batches", *seed, epoch))
            shuffle.shuffle(order)
            order.sort(key=lambda i: sum(map(len, pairs[i])))
            groups = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
            shuffle.shuffle(groups)
            steps += [[pairs[i] for i in group] for group in groups]
        return steps

    def _backward(self, session: Session, pairs: Sequence[Pair]) -> float:
        """The gradients of one optimiser step; the mean negative log-likelihood per output token before it."""
        tokens = sum(len(output) for _, output in pairs)
        loss = 0.0
        for group in within_budget(pairs, sizes, self.batch_tokens):
            batch = collate(group, session.accelerator.device)
            with session.autocast():
                logprobs_BC = output_logprobs(session.prepared, batch)
            loss += session.backward(-logprobs_BC.sum() / tokens)
        return loss
