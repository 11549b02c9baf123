"""A whole round against one step of ``trl.GRPOTrainer`` on as many samples: SmolLM2-135M, 24 prompts × K=8 × 40 tokens.

Both sides sample 192 answers, score them with VADER and update all weights once through; ours chooses 24 and tunes on
those. ``seconds``: one round or step after one to warm up, loading and saving of weights included where they happen in
every round (ours) and left out where they do not (GRPO's step). ``other_share``: what of our round is neither sampling,
scoring nor tuning.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from paired import main, openings, real_model, stopwatch, trl_options

CASES = {"round 24×8×40": {"b": 24, "k": 8, "new": 40}}


def ours(b: int, k: int, new: int) -> dict[str, float]:
    from raftune import Prompt, Run, TextLearner, TextSampler, Vader, draw, raft, rewards

    prompts = [Prompt(str(number), text) for number, text in enumerate(openings())]
    with tempfile.TemporaryDirectory() as scratch, Run(Path(scratch) / "run", real_model()) as run:
        loop = raft(
            run,
            draw=lambda number: draw(prompts, number, b, seed=0),
            sampler=TextSampler(max_new_tokens=new),
            reward=rewards(Vader()),
            learner=TextLearner(learning_rate=2e-5),
            k=k,
            rounds=2,
            shard=b,
        )
        next(loop)
        start = time.perf_counter()
        metrics = next(loop).metrics
        seconds = time.perf_counter() - start
    stages = {stage: metrics[f"time/{stage}_s"] for stage in ("sample", "score", "tune")}
    return {"seconds": seconds, **stages, "other_share": 1 - sum(stages.values()) / seconds}


def peer(b: int, k: int, new: int) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def reward(completions: list[str], **columns: object) -> list[float]:
        return [analyzer.polarity_scores(completion)["compound"] for completion in completions]

    callback, stamps = stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        config = GRPOConfig(
            per_device_train_batch_size=b * k,
            num_generations=k,
            max_completion_length=new,
            max_steps=2,
            **trl_options(scratch),
        )
        GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(real_model(), dtype=torch.float32),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in openings()]),
            processing_class=AutoTokenizer.from_pretrained(real_model()),
            callbacks=[callback],
        ).train()
    return {"seconds": stamps[1] - stamps[0]}


if __name__ == "__main__":
    main(CASES, {"ours": ours, "peer": peer}, smaller_is_better="seconds")
