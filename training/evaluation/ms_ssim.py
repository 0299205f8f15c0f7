"""Multi-scale structural similarity of grey images (Wang, Simoncelli, Bovik 2003), and variety by it.

    MS-SSIM(x, y) = l_S(x, y)^w_S  prod_{j=1..S} cs_j(x, y)^w_j

with l the luminance and cs the contrast-structure term, means over the image at each scale; a scale halves the one
before. Five scales need 176 pixels; smaller images take fewer, and the weights of those taken are scaled to sum 1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5  # pixels
_C1, _C2 = 0.01**2, 0.03**2  # for a range of 1
_LUMA = (0.299, 0.587, 0.114)  # BT.601
_BATCH = 64  # pairs compared at a time
MAX_PER_GROUP = 16  # images of a group that are paired: 120 pairs
NUM_BOOTSTRAPS = 200
MANY_GROUPS = 10  # from so many on the groups are a sample of what could be asked for


def num_scales(height: int, width: int) -> int:
    """How many scales fit: the coarsest must hold one window of 11 pixels. Raises ValueError below that."""
    fitting = [scale for scale in range(len(WEIGHTS)) if min(height, width) // 2**scale >= _WINDOW]
    if not fitting:
        raise ValueError(f"MS-SSIM needs images of at least {_WINDOW} pixels; got {width} x {height}.")
    return len(fitting)


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """(B,) of grey images (B, H, W) in [0, 1]; 1 for equal images, about 0 for unrelated ones."""
    if x.shape != y.shape or x.ndim != 3:
        raise ValueError(
            f"MS-SSIM compares grey images (B, H, W) of one shape; got {tuple(x.shape)}, {tuple(y.shape)}."
        )
    scales = num_scales(*x.shape[1:])
    weights = torch.tensor(WEIGHTS[:scales], dtype=x.dtype)
    weights = weights / weights.sum()
    x, y, result = x[:, None], y[:, None], torch.ones(len(x), dtype=x.dtype)
    for scale in range(scales):
        luminance, contrast = _terms(x, y)
        # Anti-correlated images have a negative term, which has no real power.
        result = result * contrast.clamp(min=0) ** weights[scale]
        if scale == scales - 1:
            result = result * luminance ** weights[scale]
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result


def _terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean luminance and contrast-structure terms (B,), by Gaussian windows inside the image."""
    mean_x, mean_y, square_x, square_y, product = (_window(z) for z in (x, y, x * x, y * y, x * y))
    covariance = product - mean_x * mean_y
    variances = square_x - mean_x**2 + square_y - mean_y**2
    contrast = (2 * covariance + _C2) / (variances + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return luminance.mean((1, 2, 3)), contrast.mean((1, 2, 3))


def _window(images: Tensor) -> Tensor:
    steps = torch.arange(_WINDOW, dtype=images.dtype) - _WINDOW // 2
    kernel = torch.exp(-(steps**2) / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    return F.conv2d(F.conv2d(images, kernel[None, None, :, None]), kernel[None, None, None, :])


def grey(pixels: Tensor) -> Tensor:
    """uint8 RGB (N, 3, H, W) -> luma (N, H, W) in [0, 1]."""
    return torch.einsum("nchw,c->nhw", pixels.float() / 255, torch.tensor(_LUMA))


class PairTable:
    """MS-SSIM of all pairs within each group, at most MAX_PER_GROUP images of a group, chosen by ``seed``."""

    def __init__(self, pixels: Tensor, labels: Sequence[str], *, seed: int) -> None:
        self.of_label: dict[str, np.ndarray] = {}  # (n, n) symmetric, 1 on the diagonal
        rng = np.random.default_rng(seed)
        for label in sorted(set(labels)):
            members = np.flatnonzero(np.array(labels) == label)
            if len(members) > MAX_PER_GROUP:
                members = np.sort(rng.choice(members, MAX_PER_GROUP, replace=False))
            if len(members) > 1:
                self.of_label[label] = _all_pairs(grey(pixels[torch.from_numpy(members)]))

    def mean(self, weights: dict[str, float]) -> float:
        """The groups' mean similarities of different images, weighted."""
        parts = [(weight, _mean_of_pairs(self.of_label[label])) for label, weight in weights.items()]
        return sum(weight * value for weight, value in parts) / sum(weights.values())

    def interval(self, weights: dict[str, float], *, seed: int) -> tuple[float, float]:
        """95 % bootstrap interval of `mean`: images drawn anew within each group, and many groups drawn anew too.

        A group of two has one pair, whose spread only other groups tell: with MANY_GROUPS they are drawn as well.
        """
        rng = np.random.default_rng(seed)
        labels, values = list(weights), []
        for _ in range(NUM_BOOTSTRAPS):
            chosen = rng.choice(labels, len(labels)) if len(labels) >= MANY_GROUPS else labels
            drawn = [(weights[label], _mean_of_pairs(_drawn_anew(self.of_label[label], rng))) for label in chosen]
            values.append(sum(weight * value for weight, value in drawn) / sum(weight for weight, _ in drawn))
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)


def _mean_of_pairs(table: np.ndarray) -> float:
    """Mean off the diagonal, and off what is NaN: an image drawn twice makes no pair with itself."""
    return float(np.nanmean(table[~np.eye(len(table), dtype=bool)]))


def _drawn_anew(table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The table of as many images, drawn with replacement, at least two of them different."""
    while True:
        drawn = rng.integers(0, len(table), len(table))
        if len(set(drawn)) > 1:
            sample = table[np.ix_(drawn, drawn)]
            sample[drawn[:, None] == drawn[None, :]] = np.nan
            return sample


@torch.inference_mode()
def _all_pairs(images: Tensor) -> np.ndarray:
    first, second = torch.triu_indices(len(images), len(images), 1)
    parts = zip(first.split(_BATCH), second.split(_BATCH), strict=True)
    values = torch.cat([ms_ssim(images[i], images[j]) for i, j in parts]).double().numpy()
    table = np.eye(len(images))
    rows, columns = first.numpy(), second.numpy()
    table[rows, columns] = table[columns, rows] = values
    return table
