"""Is an image a copy of one that the generator was trained on? Nearest neighbours among small grey pictures.

Similarity of two images: the correlation of their z-scored grey pixels at 32 x 32, the larger of identity and mirror
image. An image counts as a copy where its similarity to its nearest training image exceeds that of 99 % of held-out
real images, which nobody has seen and which are therefore similar by chance alone.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.evaluation.ms_ssim import grey

SIDE = 32  # pixels
NULL_QUANTILE = 0.99


def nearest_similarity(pixels: Tensor, training: Tensor) -> np.ndarray:
    """Of uint8 images (N, 3, H, W), the similarity (N,) to the nearest of the training images (M, 3, H', W')."""
    ours, theirs = _standardised(pixels), _standardised(training)
    mirrored = theirs.flip(-1)
    count = SIDE * SIDE
    found = [(ours.flatten(1) @ other.flatten(1).T / count).max(1).values for other in (theirs, mirrored)]
    return torch.maximum(*found).numpy()


def copies_of_training_images(pixels: Tensor, *, training: Tensor, held_out: Tensor) -> np.ndarray:
    """(N,) bool: images nearer to a training image than 99 % of the held-out ones are; all uint8 (., 3, H, W)."""
    limit = np.quantile(nearest_similarity(held_out, training), NULL_QUANTILE)
    return nearest_similarity(pixels, training) > limit


def _standardised(pixels: Tensor) -> Tensor:
    """Grey, 32 x 32, mean 0 and deviation 1; an image without any contrast resembles nothing."""
    small = F.interpolate(grey(pixels)[:, None], (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0]
    centred = small - small.mean((1, 2), keepdim=True)
    return centred / centred.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-6)
