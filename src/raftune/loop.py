"""The algorithm (arXiv 2304.06767, algorithm 1): sample, rank, fine-tune, repeat. No torch, no modality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .protocols import Learner, Sampler, Select
from .rank import Best, choose, name_of
from .score import Rewards
from .store import Run
from .types import Prompt, Round


def raft(
    run: Run,
    draw: Callable[[int], Sequence[Prompt]],
    sampler: Sampler,
    reward: Rewards,
    learner: Learner,
    k: int,
    rounds: int,
    select: Select = Best(),
    seed: int = 0,
    shard: int = 32,
    buffer: int = 0,
) -> Iterator[Round]:
    """Yield each round once it is committed, so that the caller evaluates, logs, draws, stops.

    Args:
        run: where everything is kept; a run opened again goes on where it was left.
        draw: round number (from 1) → the b prompts of the round (paper: the batch D_t).
        sampler, reward, select, learner: the parts; see :mod:`raftune.protocols`.
        k: candidates per prompt (paper: K).
        rounds: stop after this round.
        seed: every random choice is addressed by it.
        shard: prompts sampled between two writes to disk; a crash costs at most one shard.
        buffer: the winners of so many earlier rounds are learned from again, beside those of the round.

    Raises:
        UserError: the reward broke its contract or nothing was chosen. The candidates stay on disk.
        Interrupted: a signal asked for it; everything done so far is on disk.
    """
    run.settle(k=k, seed=seed, shard=shard, select=name_of(select), buffer=buffer)
    for number in run.remaining(rounds):
        here, address = run.round(number), (seed, number)
        prompts = here.prompts(lambda: draw(number))
        candidates = here.candidates(prompts, shard, lambda some: sampler.sample(run.policy, some, k, address), reward)
        scored = here.scored(candidates, reward)
        chosen = here.chosen(scored, lambda: choose(select, scored, address))
        lesson = run.lesson(number, buffer)
        policy = here.policy(lambda out: learner.tune(run.policy, lesson, out, address))
        yield run.commit(number, scored, chosen, policy)
