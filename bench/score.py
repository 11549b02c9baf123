"""Scoring: ClassifierReward against a transformers text-classification pipeline on the same answers, one reward each.

Answers of mixed lengths (words of the quickstart's openings, so many as real answers have) with the share of equal ones
that real runs have. The peer gets the batch size that is its best here, in the same precision, and the texts in the
order in which they were drawn. ``rate`` is candidates per second, both sides tokenizing included; ``share_of_matmul``:
FLOPs of the different inputs (2 × the parameters of their layers a token) over what a plain matmul of 2,048 rows does
in the same time; ``ties``: share of the different inputs whose reward another one has too; ``swapped``: share of the
pairs of them that float32 orders otherwise. Both sides must be within ``FAR`` deviations of float32's rewards.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from pathlib import Path
from typing import Any

import machine
from machine import clock
from paired import Side, main, openings

FAR = 0.5
SIZES = (1, 4, 8, 16, 32, 64)
CASES = {
    "MiniLM, 768 candidates, K=32": {"asset": "all-minilm-l6-v2", "k": 32, "equal": 0.03},
    "SmolLM2-135M, 192 candidates, K=8": {"asset": "smollm2-135m-instruct", "k": 8, "equal": 0.03},
    "SmolLM2-135M, 192 candidates, K=8, 30 % equal": {"asset": "smollm2-135m-instruct", "k": 8, "equal": 0.3},
}


def reward_model(asset: str, folder: Path) -> str:
    """A sequence classifier of one output on a real body, its head drawn."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from raftune.models import load_tokenizer, locate, quiet

    torch.manual_seed(0)
    tokenizer = load_tokenizer(f"asset:{asset}")
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(locate(f"asset:{asset}"), num_labels=1)
    head = [part for part in model.children() if part is not model.base_model][-1]
    torch.nn.init.normal_(head.weight, std=8 / head.weight.shape[1] ** 0.5)
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "right"
    tokenizer.chat_template = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def candidates(k: int, equal: float) -> list[Any]:
    """24 prompts; lengths of the answers as those of the quickstart and of IMDB: many at the limit, some far below."""
    from raftune.types import Candidate, Prompt, Text

    draw = random.Random(0)
    words = " ".join(openings()).split()
    found = []
    for number, opening in enumerate(openings()[:24]):
        answers: list[str] = []
        for _ in range(k):
            again = answers and draw.random() < equal * k / (k - 1)
            length = 45 if draw.random() < 0.6 else draw.randint(3, 45)
            answers.append(draw.choice(answers) if again else " " + " ".join(draw.choices(words, k=length)))
        prompt = Prompt(str(number), opening)
        found += [Candidate(prompt, index, Text(answer)) for index, answer in enumerate(answers)]
    return found


def ours(asset: str, k: int, equal: float) -> dict[str, float]:
    from raftune.reward.classifier import ClassifierReward

    with tempfile.TemporaryDirectory() as folder:
        reward = ClassifierReward(reward_model(asset, Path(folder)))
        asked = candidates(k, equal)
        reward(asked[:16])
        start = clock()
        values = [float(value or 0.0) for value in reward(asked)]
        seconds = clock() - start
        figures = {"rate": len(asked) / seconds, "peak_gb": machine.peak_gb(), **quality(folder, asked, values)}
        return figures | {"share_of_matmul": flops(folder, asked) / seconds / at_best()}


def by_pipeline(asset: str, k: int, equal: float) -> dict[str, float]:
    from transformers import pipeline

    from raftune.models import compute_dtype, device

    with tempfile.TemporaryDirectory() as folder:
        where = reward_model(asset, Path(folder))
        classify = pipeline("text-classification", where, dtype=compute_dtype(device()), device=device())
        asked = candidates(k, equal)
        texts = [one.prompt.content + one.output.text for one in asked]

        def timed(some: list[str], size: int) -> tuple[float, list[float]]:
            start = clock()
            found = classify(some, batch_size=size, function_to_apply="none")
            return clock() - start, [one["score"] for one in found]

        timed(texts[:16], 4)
        size = min(SIZES, key=lambda size: timed(texts[:64], size)[0])
        seconds, values = timed(texts, size)
        figures = {"rate": len(asked) / seconds, "peak_gb": machine.peak_gb(), "batch_size": size}
        return figures | quality(folder, asked, values)


def inputs_of(folder: str, asked: list[Any]) -> dict[str, list[int]]:
    """The different inputs as token ids."""
    from raftune.models import load_tokenizer

    texts = list(dict.fromkeys(one.prompt.content + one.output.text for one in asked))
    return dict(zip(texts, load_tokenizer(folder)(texts)["input_ids"], strict=True))


def flops(folder: str, asked: list[Any]) -> float:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    return 2 * weights * sum(map(len, inputs_of(folder, asked).values()))


def at_best() -> float:
    import limits

    from raftune.models import compute_dtype, device

    return limits.layer_rate(2048, 576, 1536, 60, compute_dtype(device()), device())


def quality(folder: str, asked: list[Any], values: list[float], compared: int = 64) -> dict[str, float]:
    """``ties`` of all different inputs, ``swapped`` of the first so many; asserts that values are near float32's."""
    import torch
    from transformers import AutoModelForSequenceClassification

    inputs = inputs_of(folder, asked)
    found = dict(zip((one.prompt.content + one.output.text for one in asked), values, strict=True))
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    some = list(inputs)[:compared]
    with torch.inference_mode():
        exact = [model(torch.tensor([inputs[text]])).logits.item() for text in some]
    deviation = torch.tensor(exact).std().item()
    gaps = [abs(found[text] - value) / deviation for text, value in zip(some, exact, strict=True)]
    assert max(gaps) < FAR, gaps
    rows = [(found[text], value) for text, value in zip(some, exact, strict=True)]
    pairs = list(itertools.combinations(rows, 2))
    swapped = sum((a - b) * (x - y) <= 0 for (a, x), (b, y) in pairs) / len(pairs)
    different = list(found.values())
    ties = sum(different.count(value) > 1 for value in different) / len(different)
    return {"ties": ties, "swapped": swapped, "deviation": deviation}


if __name__ == "__main__":
    main(CASES, {"ours": Side(ours), "pipeline": Side(by_pipeline)})
