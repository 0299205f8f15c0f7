"""Fidelity and variety by nearest neighbours: density, coverage, precision, recall.

Every real image has a ball that reaches to its k-th nearest other real image. Density and coverage are those of
Naeem et al. (2020), precision and recall those of Kynkäänniemi et al. (2019).
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist


@dataclass(frozen=True)
class Neighbourhoods:
    density: float  # mean number of real balls around a generated image, over k; 1 in expectation for equal sets
    coverage: float  # share of the real balls that hold a generated image
    precision: float  # share of the generated images inside any real ball
    recall: float  # share of the real images inside any generated ball


def neighbourhoods(real: np.ndarray, generated: np.ndarray, k: int) -> Neighbourhoods:
    """Of features (M, D) and (N, D); M and N must exceed k."""
    if min(len(real), len(generated)) <= k:
        raise ValueError(
            f"k = {k} neighbours need more than {k} images in each set: {len(real)} and {len(generated)}."
        )
    distances = cdist(real, generated)
    in_real_ball = distances <= _radii(real, k)[:, None]
    in_generated_ball = distances <= _radii(generated, k)[None, :]
    return Neighbourhoods(
        density=float(in_real_ball.sum() / (k * len(generated))),
        coverage=float(in_real_ball.any(1).mean()),
        precision=float(in_real_ball.any(0).mean()),
        recall=float(in_generated_ball.any(1).mean()),
    )


def _radii(points: np.ndarray, k: int) -> np.ndarray:
    """Distance of each point (n, D) to its k-th nearest other one."""
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    return np.partition(distances, k - 1, axis=1)[:, k - 1]
