"""Sampler against bare pipeline, learner against a bare training loop, a round against training on all K.

The model is the repository's own (``digits/model``, 5 M parameters, 32 × 32 pictures, float32), the smallest there is:
what we add to a picture or a step weighs most here. The aim is to lose no more than 5 % of sampling, 10 % of tuning.

- sample: the same prompts, generators, steps and batch; ``rate``: pictures per second after a warm-up. Ours also makes
  the PNG and its hash.
- tune: the same latents and embeddings, ready in memory on both sides; full UNet, v-prediction, min-SNR, AdamW,
  clipping. ``rate``: pictures per second from the end of the first step to the end of the last.
- round: sample K of each prompt, choose one, one pass. The peer passes over all K with weight zero for the losers, as
  online fine-tuning in flow_grpo does. ``rate``: candidates per second of sampling and tuning; sampling is the same on
  both sides and most of the work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import clock
from paired import main

MODEL = Path(__file__).parent.parent / "digits" / "model"
STEPS, GUIDANCE = 8, 2.5
CASES: dict[str, dict[str, Any]] = {
    "sample 32×32, 8 steps, batch 64": {"stage": "sample", "count": 8, "k": 48, "batch": 64},
    "tune 32×32, batch 32": {"stage": "tune", "pictures": 96, "batch": 32, "steps": 24},
    "round 24 prompts, K=8, best of each": {"stage": "round", "count": 24, "k": 8, "batch": 24},
}


def prompts(count: int) -> list[Any]:
    from raftune import Prompt

    colours, digits = ("red", "green", "blue", "yellow", "white"), ("two", "three", "five", "seven", "nine")
    texts = [f"a {colour} {digit}" for colour in colours for digit in digits]
    return [Prompt(text, text) for text in texts[:count]]


def ours(stage: str, **case: Any) -> dict[str, float]:
    return {"sample": our_sample, "tune": our_tune, "round": our_round}[stage](**case)


def bare(stage: str, **case: Any) -> dict[str, float]:
    return {"sample": bare_sample, "tune": bare_tune, "round": all_round}[stage](**case)


def sampler(batch: int) -> Any:
    from raftune.sample.image import ImageSampler

    return ImageSampler(steps=STEPS, guidance=GUIDANCE, batch_rows=batch)


def our_sample(count: int, k: int, batch: int) -> dict[str, float]:
    draw, asked = sampler(batch), prompts(count)
    draw.sample(MODEL, asked, batch // count, (0, "warm-up"))
    start = clock()
    drawn = draw.sample(MODEL, asked, k, (0,))
    return {"rate": len(drawn) / (clock() - start)}


def bare_sample(count: int, k: int, batch: int) -> dict[str, float]:
    import torch
    from diffusers import DiffusionPipeline

    from raftune.models import device
    from raftune.pipelines import precision

    pipe = DiffusionPipeline.from_pretrained(MODEL, dtype=precision()).to(device())
    pipe.set_progress_bar_config(disable=True)
    texts = [prompt.content for prompt in prompts(count) for _ in range(k)]

    def draw(some: list[str]) -> None:
        generators = [torch.Generator().manual_seed(number) for number in range(len(some))]
        pipe(some, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators)

    draw(texts[:batch])
    start = clock()
    for at in range(0, len(texts), batch):
        draw(texts[at : at + batch])
    return {"rate": len(texts) / (clock() - start)}


def winners(count: int) -> list[Any]:
    from raftune import Scored

    drawn = sampler(64).sample(MODEL, prompts(24), -(-count // 24), (0,))
    return [Scored(candidate, 0.0) for candidate in drawn[:count]]


def our_tune(pictures: int, batch: int, steps: int) -> dict[str, float]:
    from raftune import progress
    from raftune.tune.image import ImageLearner

    stamps: list[float] = []

    def watch(description: str, total: int) -> tuple[progress.Advance, Callable[[], None]]:
        watched = description == "tune"
        return lambda done: stamps.append(clock()) if done and watched else None, lambda: None

    learner = ImageLearner(learning_rate=1e-5, steps=steps, max_epochs=steps, batch_size=batch, lora=None)
    chosen = winners(pictures)
    with tempfile.TemporaryDirectory() as scratch, progress.shown_by(watch):
        learner.tune(MODEL, chosen, Path(scratch) / "policy", (0,))
    return {"rate": batch * (len(stamps) - 1) / (stamps[-1] - stamps[0])}


def bare_tune(pictures: int, batch: int, steps: int) -> dict[str, float]:
    lesson = latents_of(winners(pictures))
    rows = [[(step * batch + place) % pictures for place in range(batch)] for step in range(steps)]
    stamps = train(lesson, rows, [1.0] * pictures)
    return {"rate": batch * (len(stamps) - 1) / (stamps[-1] - stamps[0])}


def latents_of(chosen: Sequence[Any]) -> tuple[Any, Any]:
    """The pictures' latents and their prompts' embeddings, a row each."""
    import torch
    from diffusers import DiffusionPipeline

    from raftune.models import device

    pipe = DiffusionPipeline.from_pretrained(MODEL, unet=None).to(device())
    texts = [one.candidate.prompt.content for one in chosen]
    with torch.no_grad():
        pixels = pipe.image_processor.preprocess([one.candidate.output.image for one in chosen]).to(device())
        latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        return latents, pipe.encode_prompt(texts, device(), 1, False)[0]


def train(lesson: tuple[Any, Any], steps: Sequence[Sequence[int]], weights: Sequence[float]) -> list[float]:
    """As diffusers' example trains a UNet, with the latents at hand; the times at which the steps ended."""
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from diffusers.training_utils import compute_snr

    from raftune.models import device
    from raftune.pipelines import precision

    unet = UNet2DConditionModel.from_pretrained(MODEL, subfolder="unet", dtype=torch.float32).to(device()).train()
    scheduler = DDPMScheduler.from_pretrained(MODEL, subfolder="scheduler")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, weight_decay=0.0)
    all_latents, all_embeddings = lesson
    weight = torch.tensor(weights, device=unet.device)
    stamps = []
    for rows in steps:
        latents, embeddings = all_latents[rows], all_embeddings[rows]
        noise = torch.randn_like(latents)
        times = torch.randint(0, scheduler.config.num_train_timesteps, (len(rows),), device=unet.device)
        with torch.autocast(unet.device.type, torch.bfloat16, enabled=precision() == torch.bfloat16):
            answer = unet(scheduler.add_noise(latents, noise, times), times, embeddings, return_dict=False)[0].float()
        snr = compute_snr(scheduler, times)
        errors = (answer - scheduler.get_velocity(latents, noise, times)).square().mean((1, 2, 3))
        (errors * snr.clamp(max=5.0) / (snr + 1) * weight[rows]).mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        stamps.append(clock())
    return stamps


def our_round(count: int, k: int, batch: int) -> dict[str, float]:
    from raftune import Scored
    from raftune.tune.image import ImageLearner

    learner = ImageLearner(learning_rate=1e-5, steps=10**6, max_epochs=1, batch_size=batch, lora=None)
    sampler(64).sample(MODEL, prompts(count), 1, (0, "warm-up"))
    start = clock()
    drawn = sampler(64).sample(MODEL, prompts(count), k, (0,))
    chosen = [Scored(candidate, 0.0) for candidate in drawn if candidate.index == 0]
    with tempfile.TemporaryDirectory() as scratch:
        learner.tune(MODEL, chosen, Path(scratch) / "policy", (0,))
    return rate_of(count * k, start)


def all_round(count: int, k: int, batch: int) -> dict[str, float]:
    from raftune import Scored

    sampler(64).sample(MODEL, prompts(count), 1, (0, "warm-up"))
    start = clock()
    drawn = sampler(64).sample(MODEL, prompts(count), k, (0,))
    lesson = latents_of([Scored(candidate, 0.0) for candidate in drawn])
    rows = [list(range(at, at + batch)) for at in range(0, len(drawn), batch)]
    train(lesson, rows, [float(candidate.index == 0) for candidate in drawn])
    return rate_of(count * k, start)


def rate_of(candidates: int, start: float) -> dict[str, float]:
    seconds = clock() - start
    return {"rate": candidates / seconds, "seconds": seconds}


if __name__ == "__main__":
    main(CASES, {"ours": ours, "bare": bare})
