"""Distances between two sets of features: KID, MMD, the Fréchet distance, and the inception score.

The squared maximum mean discrepancy, estimated without bias (Gretton et al. 2012, equation 3), from n and m features:

    MMD^2 = sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1))
            - 2 sum_{i, j} k(x_i, y_j) / (n m)

It is zero in expectation where both sets come from one distribution, and may then fall below zero.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import norm

from training.evaluation.intervals import CONFIDENCE, Interval

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # features (n, D), (m, D) -> (n, m)


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x, y) = (x . y / D + 1)^3, the kernel of the KID (Binkowski et al. 2018)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


@dataclass(frozen=True)
class GaussianKernel:
    """k(x, y) = exp(-|x - y|^2 / (2 s^2))."""

    bandwidth: float  # s, in the features' units

    @classmethod
    def of_median(cls, features: np.ndarray) -> "GaussianKernel":
        """s = the median distance between the features (M, D) of the reference set."""
        distances = cdist(features, features)[np.triu_indices(len(features), 1)]
        bandwidth = float(np.median(distances))
        if bandwidth == 0:
            raise ValueError("More than half of the pairs of real images are equal to the encoder.")
        return cls(bandwidth)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-cdist(x, y, "sqeuclidean") / (2 * self.bandwidth**2))


def squared_mmd(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
    """Unbiased MMD^2 of features (n, D) and (m, D), n and m at least 2."""
    return _mmd_of_sums(_off_diagonal(kernel(x, x)), kernel(x, y).sum(), _off_diagonal(kernel(y, y)), len(x), len(y))


def _off_diagonal(matrix: np.ndarray) -> float:
    return matrix.sum() - np.trace(matrix)


def _mmd_of_sums(within_x, across, within_y, n, m):
    """Numbers, or arrays of them: sums over ordered pairs of different images, and over all pairs across."""
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)


def squared_mmd_interval(
    x: np.ndarray, y: np.ndarray, kernel: Kernel, groups_x: np.ndarray, groups_y: np.ndarray
) -> Interval:
    """Unbiased MMD^2 with a normal interval from the delete-a-group jackknife of both sets.

    The bootstrap would not do: an image drawn twice is its own neighbour and pushes MMD^2 upwards.
    """
    xx, xy, yy = kernel(x, x), kernel(x, y), kernel(y, y)
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    n, m = len(x), len(y)
    value = float(_mmd_of_sums(xx.sum(), xy.sum(), yy.sum(), n, m))
    variance = _jackknife_variance(xx, xy, yy, groups_x) + _jackknife_variance(yy, xy.T, xx, groups_y)
    half = float(norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(variance))
    return Interval(value, value - half, value + half)


def _jackknife_variance(own: np.ndarray, across: np.ndarray, other: np.ndarray, groups: np.ndarray) -> float:
    """Variance of MMD^2 from leaving out one group of the first set at a time."""
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 3:
        return float("nan")
    member = np.zeros((len(names), len(own)))
    member[group, np.arange(len(own))] = 1
    inside = np.einsum("gi,ij,gj->g", member, own, member, optimize=True)
    within = own.sum() - 2 * member @ own.sum(1) + inside
    left = len(own) - member.sum(1)
    estimates = _mmd_of_sums(within, across.sum() - member @ across.sum(1), other.sum(), left, len(other))
    return float((len(names) - 1) * np.mean((estimates - estimates.mean()) ** 2))


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The Fréchet (2-Wasserstein) distance, squared, of the Gaussians fitted to features (n, D) and (m, D).

    With centred features X, Y, scaled so that C = X'X, the trace of (C_x C_y)^(1/2) is the sum of the singular values
    of X Y': an n x m matrix, where D is often larger.
    """
    if max(len(x), len(y)) > x.shape[1]:
        return gaussian_frechet(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    centred_x, centred_y = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    cross = np.linalg.svd(centred_x @ centred_y.T, compute_uv=False).sum()
    difference = x.mean(0) - y.mean(0)
    return float(difference @ difference + np.square(centred_x).sum() + np.square(centred_y).sum() - 2 * cross)


def gaussian_frechet(mean_x: np.ndarray, cov_x: np.ndarray, mean_y: np.ndarray, cov_y: np.ndarray) -> float:
    """|m_x - m_y|^2 + Tr(C_x + C_y - 2 (C_x C_y)^(1/2)) (Dowson and Landau 1982; the FID of Heusel et al. 2017).

    With R = C_x^(1/2) the trace of (C_x C_y)^(1/2) is that of the symmetric (R C_y R)^(1/2): it is real.
    """
    cov_x, cov_y = np.atleast_2d(cov_x), np.atleast_2d(cov_y)
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_y @ root).clip(min=0)).sum()
    difference = np.asarray(mean_x) - np.asarray(mean_y)
    return float(difference @ difference + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)


def inception_score(probabilities: np.ndarray) -> float:
    """exp(E_x KL(p(y|x) || p(y))) of class probabilities (N, C), 1 to C (Salimans et al. 2016)."""
    if not np.allclose(probabilities.sum(1), 1, atol=1e-3) or probabilities.min() < 0:
        raise ValueError("The inception score reads probabilities that sum to 1, not logits.")
    marginal = probabilities.mean(0)
    # 0 log 0 is 0; where p(y) is 0 every p(y|x) is too.
    ratio = np.log(np.where(probabilities > 0, probabilities, 1)) - np.log(np.where(marginal > 0, marginal, 1))
    return float(np.exp((probabilities * ratio).sum(1).mean()))
