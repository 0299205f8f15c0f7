"""How well an autoencoder gives images back, as a loss and as figures; and the statistics of its latents."""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

# Wang et al. 2004: Gaussian windows of 11 pixels, and what keeps the quotients finite, for values from 0 to 1.
_WINDOW_PIXELS, _WINDOW_SIGMA = 11, 1.5
_LUMINANCE_FLOOR, _CONTRAST_FLOOR = 0.01**2, 0.03**2
_LEAST_ERROR = 1e-10  # mean square; a perfect reconstruction has 100 dB


def as_images(pixels: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 of pixels, of their differences along both axes (edges) and of 4x4 means (brightness); images in [0, 1]."""
    loss = F.l1_loss(decoded, images) + F.l1_loss(F.avg_pool2d(decoded, 4), F.avg_pool2d(images, 4))
    for axis in (-1, -2):
        loss = loss + 0.5 * F.l1_loss(decoded.diff(dim=axis), images.diff(dim=axis))
    return loss


def psnr(decoded: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, (B,); both are (B, C, H, W) in [0, 1]."""
    errors = (decoded - images).square().flatten(1).mean(1)
    return -10 * errors.clamp(min=_LEAST_ERROR).log10()


def ssim(decoded: Tensor, images: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each image, (B,), at most 1; both are (B, C, H, W) in [0, 1].

    The mean over channels and over all windows that lie inside the image. Raises ValueError below 11 pixels.
    """
    if min(images.shape[-2:]) < _WINDOW_PIXELS:
        raise ValueError(f"SSIM needs images of at least {_WINDOW_PIXELS} pixels, got {tuple(images.shape)}.")
    products = (decoded, images, decoded * decoded, images * images, decoded * images)
    mean_x, mean_y, square_x, square_y, product = (_window_means(item) for item in products)
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _LUMINANCE_FLOOR) / (mean_x.square() + mean_y.square() + _LUMINANCE_FLOOR)
    return (luminance * (2 * covariance + _CONTRAST_FLOOR) / (variances + _CONTRAST_FLOOR)).flatten(1).mean(1)


def _window_means(images: Tensor) -> Tensor:
    """Gaussian means of all windows, (B, C, H - 10, W - 10)."""
    offsets = torch.arange(_WINDOW_PIXELS, dtype=images.dtype, device=images.device) - _WINDOW_PIXELS // 2
    weights = torch.exp(-offsets.square() / (2 * _WINDOW_SIGMA**2))
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)
    rows = F.conv2d(images, weights, groups=images.shape[1])
    return F.conv2d(rows, weights.transpose(2, 3), groups=images.shape[1])


def set_latent_statistics(vae: AutoencoderKL, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Put mean and standard deviation of each channel of raw ``latents`` into the VAE's config; both (C, 1, 1)."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
    return mean.view(-1, 1, 1), deviation.view(-1, 1, 1)
