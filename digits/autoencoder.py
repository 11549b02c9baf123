"""Stage 1: the autoencoder, and the latents that stage 2 trains on."""

from pathlib import Path

import build
import torch
from data import FIVE, FORBIDDEN, GREEN, Ink, even, label_of, paint, place, shades
from diffusers import AutoencoderKL
from steps import Log, Trainer
from torch import Tensor

KL_WEIGHT = 1e-4  # little: it only keeps the latents near a unit ball, which the UNet's noise schedule expects


def even_pictures(ink: Ink, n: int, rng: torch.Generator) -> Tensor:
    """n pictures (n, 3, 32, 32) of all combinations but the green five, which no part of the model ever sees."""
    which = torch.randint(len(ink.digit), (n,), generator=rng)
    digit = ink.digit[which]
    colour = even(digit, rng)
    colour[label_of(colour, digit) == FORBIDDEN] = GREEN - 1
    assert not ((colour == GREEN) & (digit == FIVE)).any()
    return paint(place(ink.ink[which], rng), shades(colour, rng))


def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean peak signal-to-noise ratio of reconstructions in dB; pictures in [0, 1]."""
    with torch.no_grad():
        again = through(vae, pictures)
    error = (again - pictures).square().mean(dim=(1, 2, 3))
    return float((-10 * error.log10()).mean())


def through(vae: AutoencoderKL, pictures: Tensor, noise: float = 0.0) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] encoded and decoded again; `noise` is added in units of the latents' spread."""
    latent = vae.encode(pictures * 2 - 1).latent_dist.mode()
    latent = latent + torch.randn_like(latent) * noise / vae.config.scaling_factor
    return (vae.decode(latent).sample / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Scaled latents (N, 4, 8, 8) of pictures (N, 3, 32, 32), 256 at a time."""
    parts = [vae.encode(part * 2 - 1).latent_dist.mode() for part in pictures.split(256)]
    return torch.cat(parts) * vae.config.scaling_factor


def train(ink: Ink, test: Ink, folder: Path, steps: int, batch: int, seed: int, log: Log) -> None:
    """Trains on fresh pictures each step and saves to `folder`."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    vae = build.vae().to(memory_format=torch.channels_last)
    trainer = Trainer(vae.parameters(), 2e-3, steps)
    held_out = even_pictures(test, 256, torch.Generator().manual_seed(seed + 1))
    for step in range(1, steps + 1):
        x = (even_pictures(ink, batch, rng) * 2 - 1).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        again = vae.decode(posterior.sample()).sample
        # The absolute error keeps strokes crisp, the square one pulls at the few pixels that are far off.
        error = (again - x).abs().mean() + (again - x).square().mean()
        loss = error + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        trainer.step(loss)
        if step % max(1, steps // 10) == 0:
            log(step=step, loss=loss.item(), psnr=psnr(vae, held_out))
    # Stable Diffusion's convention: latents times this factor have a standard deviation of one.
    with torch.no_grad():
        spread = vae.encode(even_pictures(ink, 1024, rng) * 2 - 1).latent_dist.mode().std()
    vae.register_to_config(scaling_factor=round(1 / float(spread), 4))
    build.save(vae, folder)
    log(steps=steps, psnr=psnr(vae, held_out), scaling_factor=vae.config.scaling_factor)
