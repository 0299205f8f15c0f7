"""The diffusion loss against formulas written out by hand."""

import pytest
import torch

from generation.diffusion.presets import build_scheduler
from training.finetuning.losses import image_losses, min_snr_weights, signal_to_noise, training_target


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    latents, noise, output = (torch.randn(4, 2, 3, 3, generator=generator) for _ in range(3))
    return output, latents, noise, torch.tensor([0, 300, 700, 999])


def signal(scheduler, timesteps):
    """alpha and sigma from the betas themselves, (B, 1, 1, 1) each."""
    squared = torch.cumprod(1 - scheduler.betas.double(), 0)[timesteps].view(-1, 1, 1, 1)
    return squared.sqrt().float(), (1 - squared).sqrt().float()


def test_noise_prediction_is_the_plain_mean_squared_error(batch):
    output, latents, noise, timesteps = batch
    losses = image_losses(output, latents, noise, timesteps, build_scheduler("epsilon"))
    by_hand = torch.stack([torch.nn.functional.mse_loss(*pair) for pair in zip(output, noise, strict=True)])
    torch.testing.assert_close(losses, by_hand)


def test_the_velocity_is_what_leads_back_to_image_and_noise(batch):
    _, latents, noise, timesteps = batch
    scheduler = build_scheduler("v_prediction")
    alpha, sigma = signal(scheduler, timesteps)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(noisy, alpha * latents + sigma * noise, atol=1e-4, rtol=0)
    velocity = training_target(latents, noise, timesteps, scheduler)
    torch.testing.assert_close(alpha * noisy - sigma * velocity, latents, atol=1e-3, rtol=0)
    torch.testing.assert_close(sigma * noisy + alpha * velocity, noise, atol=1e-3, rtol=0)


def test_a_perfect_output_costs_nothing(batch):
    _, latents, noise, timesteps = batch
    for prediction_type in ("epsilon", "v_prediction"):
        scheduler = build_scheduler(prediction_type)
        target = training_target(latents, noise, timesteps, scheduler)
        assert (image_losses(target, latents, noise, timesteps, scheduler, snr_gamma=5.0) == 0).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_an_error_of_the_image_by_at_most_gamma(prediction_type, batch):
    """Both weights mean the same: min(SNR, gamma) times the squared error of the predicted clean image.

    The error of x0 is SNR^-1 times that of the noise, and (SNR + 1)^-1 times that of v.
    """
    timesteps = torch.tensor([50, 300, 700, 990])
    scheduler = build_scheduler(prediction_type)
    alpha, sigma = (value.flatten() for value in signal(scheduler, timesteps))
    snr = (alpha / sigma) ** 2
    torch.testing.assert_close(signal_to_noise(timesteps, scheduler), snr, rtol=1e-3, atol=1e-6)
    error_of_clean = 1 / snr if prediction_type == "epsilon" else 1 / (snr + 1)
    expected = torch.minimum(snr, torch.tensor(5.0)) * error_of_clean
    torch.testing.assert_close(min_snr_weights(timesteps, scheduler, 5.0), expected, rtol=1e-3, atol=1e-6)
    output, latents, noise, _ = batch
    errors = (output - training_target(latents, noise, timesteps, scheduler)).square().flatten(1).mean(1)
    losses = image_losses(output, latents, noise, timesteps, scheduler, snr_gamma=5.0)
    torch.testing.assert_close(losses, errors * expected, rtol=1e-3, atol=1e-6)


def test_weights_stay_finite_at_zero_terminal_snr():
    scheduler = build_scheduler("v_prediction")
    weights = min_snr_weights(torch.tensor([0, 999]), scheduler, 5.0)
    assert weights.isfinite().all() and weights[1] == 0


def test_half_precision_outputs_are_compared_in_float32(batch):
    output, latents, noise, timesteps = batch
    losses = image_losses(output.bfloat16(), latents, noise, timesteps, build_scheduler("epsilon"))
    assert losses.dtype == torch.float32


def test_an_unknown_prediction_type_is_refused(batch):
    scheduler = build_scheduler("epsilon")
    scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="epsilon, v_prediction"):
        image_losses(*batch, scheduler)
