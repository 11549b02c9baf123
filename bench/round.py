"""A whole round against a step of ``trl.GRPOTrainer``, a step of ``trl.RLOOTrainer`` and a loop written by hand.

SmolLM2-135M-Instruct, 24 prompts × K=8 × 40 new tokens. All sides sample 192 answers, score them with VADER and update
all weights; ours chooses 24 and tunes on those once through, GRPO and RLOO take their step on all 192, in one batch.
The loop by hand is what a user would write: ``model.generate(num_return_sequences=8)`` in the hardware's precision, the
same reward, the best of each eight, ``trl.SFTTrainer`` over them once at batch size 8, saved and loaded again.
``seconds``: one round or step after one to warm up. Loading and saving of weights is in ours and in the loop by hand,
as they happen in every round, and not in GRPO's and RLOO's step, which keep them. RLOO's default β of 0.05 needs a
reference model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import machine
from paired import Side, main, openings, real_model, stopwatch, trl_options

CASES = {"24 prompts × 8 answers × 40 tokens": {"b": 24, "k": 8, "new": 40}}
BATCH, RATE, TRL = 8, 2e-5, ".venv-trl"


def ours(b: int, k: int, new: int) -> dict[str, float]:
    from raftune import Prompt, Run, TextLearner, TextSampler, Vader, draw, raft, rewards

    prompts = [Prompt(str(number), text) for number, text in enumerate(openings())]
    with tempfile.TemporaryDirectory() as scratch, Run(Path(scratch) / "run", real_model()) as run:
        loop = raft(
            run,
            draw=lambda number: draw(prompts, number, b, seed=0),
            sampler=TextSampler(max_new_tokens=new),
            reward=rewards(Vader()),
            learner=TextLearner(learning_rate=RATE, batch_size=BATCH),
            k=k,
            rounds=2,
            shard=b,
        )
        next(loop)
        start = machine.clock()
        done = next(loop)
        seconds = machine.clock() - start
        peak, scored, chosen = machine.peak_gb(), list(done.scored), list(done.chosen)  # while they lie there
    stages = {stage: done.metrics[f"time/{stage}_s"] for stage in ("sample", "score", "tune")}
    found = {"seconds": seconds, "peak_gb": peak, **stages}
    return found | {"other": seconds - sum(stages.values())} | needed(scored, chosen, b, k)


def needed(scored: Any, chosen: Any, b: int, k: int) -> dict[str, float]:
    """The limit of the work that this round really did."""
    import limits

    from raftune.models import compute_dtype, device, load_model, load_tokenizer
    from raftune.tokens import encode_prompt

    def tokens(some: Any) -> int:
        return sum(len(one.candidate.output.token_ids) for one in some)

    tokenizer = load_tokenizer(real_model())
    prompt_tokens = sum(len(encode_prompt(tokenizer, one.candidate.prompt)) for one in chosen)
    drawn, outputs = tokens(scored), tokens(chosen)
    model = load_model(real_model(), compute_dtype(device()))
    work = {"steps": -(-b // BATCH), "tuned": prompt_tokens + outputs, "outputs": outputs}
    return {"drawn": drawn} | limits.of_round(model, b * k, drawn, b, prompt_tokens, **work)


def reward(completions: list[str], **columns: object) -> list[float]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(completion)["compound"] for completion in completions]


def grpo(b: int, k: int, new: int) -> dict[str, float]:
    from trl import GRPOConfig, GRPOTrainer

    return online(GRPOConfig, GRPOTrainer, b, k, new)


def rloo(b: int, k: int, new: int) -> dict[str, float]:
    from trl import RLOOConfig, RLOOTrainer

    return online(RLOOConfig, RLOOTrainer, b, k, new)


def online(config_class: Any, trainer_class: Any, b: int, k: int, new: int) -> dict[str, float]:
    """The second of two steps."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    callback, stamps = stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        config = config_class(
            per_device_train_batch_size=b * k,
            num_generations=k,
            max_completion_length=new,
            max_steps=2,
            **trl_options(scratch),
        )
        trainer_class(
            model=AutoModelForCausalLM.from_pretrained(real_model(), dtype=torch.float32),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in openings()]),
            processing_class=AutoTokenizer.from_pretrained(real_model()),
            callbacks=[callback],
        ).train()
    return {"seconds": stamps[1] - stamps[0]}


def by_hand(b: int, k: int, new: int) -> dict[str, float]:
    """Generate, score, SFTTrainer, save; twice."""
    texts, policy = openings(), real_model()
    stages: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(2):
            start = machine.clock()
            prompts = texts[number * b : (number + 1) * b]
            answers = answers_of(policy, prompts, k, new)
            sampled = machine.clock()
            scores = reward(answers)
            best = [max(range(at, at + k), key=scores.__getitem__) for at in range(0, b * k, k)]
            rows = [{"prompt": p, "completion": answers[row]} for p, row in zip(prompts, best, strict=True)]
            scored = machine.clock()
            policy = tuned_on(policy, rows, str(Path(scratch) / f"policy-{number}"))
            end = machine.clock()
            stages = {"sample": sampled - start, "score": scored - sampled, "tune": end - scored}
    return {"seconds": sum(stages.values()), **stages}


def answers_of(policy: str, prompts: list[str], k: int, new: int) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from raftune.models import compute_dtype, device

    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=compute_dtype(device())).to(device()).eval()
    asked = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    with torch.inference_mode():
        out = model.generate(**asked, do_sample=True, top_k=0, num_return_sequences=k, max_new_tokens=new)
    return tokenizer.batch_decode(out[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)


def tuned_on(policy: str, rows: list[dict[str, str]], out: str) -> str:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        args=SFTConfig(per_device_train_batch_size=BATCH, num_train_epochs=1, **trl_options(out)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(out)
    return out


SIDES = {
    "ours": Side(ours),
    "GRPO": Side(grpo, TRL),
    "RLOO": Side(rloo, TRL),
    "by hand": Side(by_hand, TRL),
}

if __name__ == "__main__":
    main(CASES, SIDES, smaller_is_better="seconds", pairs=2)
