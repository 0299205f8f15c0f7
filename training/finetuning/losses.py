"""The training objective of latent diffusion, for both things a UNet may predict."""

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from training.finetuning.arguments import PREDICTION_TYPES


def image_losses(
    model_output: Tensor,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    scheduler: DDPMScheduler,
    snr_gamma: float | None = None,
) -> Tensor:
    """The loss of each image, (B,) in float32: mean squared error against the target of the prediction type.

    ``model_output``, ``latents`` and ``noise`` are (B, C, h, w), ``timesteps`` (B,). Without ``snr_gamma`` every
    timestep counts alike; with it the loss of each image is weighted by ``min_snr_weights``.
    """
    target = training_target(latents, noise, timesteps, scheduler)
    errors = (model_output.float() - target.float()).square().flatten(1).mean(1)
    if snr_gamma is None:
        return errors
    return errors * min_snr_weights(timesteps, scheduler, snr_gamma)


def training_target(latents: Tensor, noise: Tensor, timesteps: Tensor, scheduler: DDPMScheduler) -> Tensor:
    """What the UNet should say, (B, C, h, w): the noise, or v = alpha noise - sigma x0 (Salimans and Ho 2022)."""
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"Prediction type {prediction_type!r} cannot be trained. Known: {', '.join(PREDICTION_TYPES)}.")


def signal_to_noise(timesteps: Tensor, scheduler: DDPMScheduler) -> Tensor:
    """SNR = alpha^2 / sigma^2 at each timestep, (B,); 0 at the last one under zero terminal SNR."""
    signal = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    return signal / (1 - signal)


def min_snr_weights(timesteps: Tensor, scheduler: DDPMScheduler, gamma: float) -> Tensor:
    """Min-SNR weights (Hang et al. 2023), (B,): min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v."""
    snr = signal_to_noise(timesteps, scheduler)
    clipped = snr.clamp(max=gamma)
    if scheduler.config.prediction_type == "v_prediction":
        return clipped / (snr + 1)
    # An epsilon model has no use for SNR 0; below gamma the quotient is 1 whatever the SNR.
    return torch.where(snr > gamma, gamma / snr.clamp(min=gamma), torch.ones_like(snr))
