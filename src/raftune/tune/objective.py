"""What a denoiser is trained to say, taken from the pipeline's scheduler: epsilon, v, sample, or a flow's velocity.

Shape suffixes: B rows, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import (  # pyright: ignore[reportPrivateImportUsage]
    DDPMScheduler,  # pyright: ignore[reportPrivateImportUsage]
    FlowMatchEulerDiscreteScheduler,  # pyright: ignore[reportPrivateImportUsage]
)
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr

from ..errors import UserError


@dataclass(frozen=True)
class Task:
    """Noised latents with the times they stand at, what the denoiser should answer, and each row's weight."""

    noisy_BCHW: torch.Tensor
    timesteps_B: torch.Tensor
    target_BCHW: torch.Tensor
    weights_B: torch.Tensor

    def loss(self, answer_BCHW: torch.Tensor) -> torch.Tensor:
        """The rows' weighted mean squared errors, summed."""
        errors_B = (answer_BCHW.float() - self.target_BCHW.float()).square().flatten(1).mean(1)
        return (errors_B * self.weights_B).sum()


class Objective(Protocol):
    def task(self, latents_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, generators: Sequence[torch.Generator]) -> Task:
        """Draw each row's time from its own generator (on the CPU) and noise the latents up to them."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """Epsilon, v or sample prediction, uniform in time; ``snr_gamma``: min-SNR weighting (arXiv 2303.09556)."""

    scheduler: Any
    snr_gamma: float | None = None

    def task(self, latents_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, generators: Sequence[torch.Generator]) -> Task:
        count = self.scheduler.config.num_train_timesteps
        drawn = [torch.randint(0, count, (1,), generator=generator) for generator in generators]
        timesteps_B = torch.cat(drawn).to(latents_BCHW.device)
        noisy_BCHW = self.scheduler.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        target_BCHW = {
            "epsilon": lambda: noise_BCHW,
            "v_prediction": lambda: self.scheduler.get_velocity(latents_BCHW, noise_BCHW, timesteps_B),
            "sample": lambda: latents_BCHW,
        }[self.scheduler.config.prediction_type]()
        return Task(noisy_BCHW, timesteps_B, target_BCHW, self._weights(timesteps_B))

    def _weights(self, timesteps_B: torch.Tensor) -> torch.Tensor:
        if self.snr_gamma is None:
            return torch.ones(len(timesteps_B), device=timesteps_B.device)
        snr_B = compute_snr(self.scheduler, timesteps_B)
        capped_B = snr_B.clamp(max=self.snr_gamma)  # the weight of the error of the clean latents
        return {
            "epsilon": capped_B / snr_B,
            "v_prediction": capped_B / (snr_B + 1),
            "sample": capped_B,
        }[self.scheduler.config.prediction_type]


@dataclass(frozen=True)
class Flow:
    """Flow matching: the velocity from latents to noise, times drawn log-normally (Stable Diffusion 3, section 3.1)."""

    scheduler: Any

    def task(self, latents_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, generators: Sequence[torch.Generator]) -> Task:
        drawn = [
            compute_density_for_timestep_sampling("logit_normal", 1, logit_mean=0.0, logit_std=1.0, generator=generator)
            for generator in generators
        ]
        share_B = torch.cat(drawn)
        places_B = (share_B * self.scheduler.config.num_train_timesteps).long()
        timesteps_B = self.scheduler.timesteps[places_B].to(latents_BCHW.device)
        sigmas_B111 = self.scheduler.sigmas[places_B].to(latents_BCHW)[:, None, None, None]
        noisy_BCHW = (1 - sigmas_B111) * latents_BCHW + sigmas_B111 * noise_BCHW
        weights_B = torch.ones(len(latents_BCHW), device=latents_BCHW.device)
        return Task(noisy_BCHW, timesteps_B, noise_BCHW - latents_BCHW, weights_B)


def objective_of(config: Mapping[str, Any], snr_gamma: float | None) -> Objective:
    """From a scheduler's configuration; sampling schedulers (DPM-Solver, Euler …) share the training noise's keys."""
    name = str(config.get("_class_name", ""))
    if name.startswith("FlowMatch"):
        return Flow(FlowMatchEulerDiscreteScheduler.from_config(dict(config)))
    if "beta_schedule" not in config:
        raise UserError(f"tune: no training objective is known for the scheduler {name}")
    scheduler: Any = DDPMScheduler.from_config(dict(config))
    if scheduler.config.prediction_type not in {"epsilon", "v_prediction", "sample"}:
        raise UserError(f"tune: the scheduler predicts {scheduler.config.prediction_type!r}; epsilon, v_prediction, "
                        "sample and flow matching can be tuned")  # fmt: skip
    return Diffusion(scheduler, snr_gamma)
