"""Stage 2: UNet and text encoder, trained together on cached latents; saves the whole pipeline."""

from pathlib import Path

import autoencoder
import build
import torch
import torch.nn.functional as F  # noqa: N812
from data import FORBIDDEN, Ink, captions, confounded, label_of, paint, place, shades
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel, compute_snr
from steps import Log, Trainer
from torch import Tensor
from transformers import CLIPTextModel

DROPOUT = 0.1  # captions left empty, so that the pipeline's guidance has its unconditional half
COPIES = 2  # how often each digit is painted (place, shade, perhaps a stray colour) before the latents are cached
MAX_SNR = 5.0  # Hang et al. 2023 (arXiv 2303.09556), section 3.4: steps with hardly any noise weigh no more than this


def cached(vae: AutoencoderKL, ink: Ink, stray: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scaled latents (N, 4, 8, 8) of all digits in their confounded colours, and their labels (N,)."""
    digit, pictures = ink.digit.repeat(COPIES), ink.ink.repeat(COPIES, 1, 1)
    colour = confounded(digit, stray, rng)
    label = label_of(colour, digit)
    assert not (label == FORBIDDEN).any()
    rgb = shades(colour, rng)
    parts = [
        autoencoder.encode(vae, paint(place(some, rng), shade))
        for some, shade in zip(pictures.split(2048), rgb.split(2048), strict=True)
    ]
    return torch.cat(parts), label


def loss_of(
    unet: UNet2DConditionModel, noiser: DDPMScheduler, latent: Tensor, states: Tensor, rng: torch.Generator
) -> Tensor:
    """The v-prediction loss, min-SNR weighted, on latents (B, 4, 8, 8) under captions (B, 16, width)."""
    noise = torch.randn(latent.shape, generator=rng)
    t = torch.randint(noiser.config.num_train_timesteps, (len(latent),), generator=rng)
    predicted = unet(noiser.add_noise(latent, noise, t), t, states).sample
    error = F.mse_loss(predicted, noiser.get_velocity(latent, noise, t), reduction="none").mean(dim=(1, 2, 3))
    snr = compute_snr(noiser, t)
    return (error * snr.clamp(max=MAX_SNR) / (snr + 1)).mean()


def states_of(text: CLIPTextModel, ids: Tensor, label: Tensor) -> Tensor:
    """The text encoder's states (B, 16, width) for labels (B,); each distinct caption is encoded once."""
    distinct, back = label.unique(return_inverse=True)
    return text(ids[distinct])[0][back]


def train(ink: Ink, folder: Path, steps: int, batch: int, stray: float, seed: int, log: Log) -> StableDiffusionPipeline:
    """Trains with the autoencoder in folder/vae and saves the pipeline to `folder`."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    latents, labels = cached(vae, ink, stray, rng)
    log(cached=len(labels), distinct=len(labels.unique()), latent_mean=latents.mean().item(), std=latents.std().item())
    tokens = build.tokenizer()
    ids = tokens(captions(), padding="max_length", return_tensors="pt").input_ids
    text, unet, scheduler = build.text_encoder(tokens), build.unet(), build.scheduler()
    unet.to(memory_format=torch.channels_last)
    noiser = DDPMScheduler.from_config(scheduler.config)
    trainer = Trainer([*unet.parameters(), *text.parameters()], 1e-3, steps)
    ema = EMAModel(trainer.parameters, decay=0.995, use_ema_warmup=True, power=0.75)
    mean = 0.0
    for step in range(1, steps + 1):
        which = torch.randint(len(labels), (batch,), generator=rng)
        dropped = torch.rand(batch, generator=rng) < DROPOUT
        states = states_of(text, ids, torch.where(dropped, len(ids) - 1, labels[which]))
        loss = loss_of(unet, noiser, latents[which], states, rng)
        trainer.step(loss)
        ema.step(trainer.parameters)
        mean += loss.item()
        if step % (every := max(1, steps // 15)) == 0:
            log(step=step, loss=mean / every)
            mean = 0.0
    ema.copy_to(trainer.parameters)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.eval(),
        tokenizer=tokens,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    build.save(pipeline, folder)
    return pipeline
