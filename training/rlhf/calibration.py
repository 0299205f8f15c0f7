"""Temperature of the selector's probabilities, one per kind of image, fitted on the calibration fold.

Guo et al. (2017) with one scalar: it changes how sure the scores are, hardly their order. Ranking by the mean over
heads may shift a little where heads disagree.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from generation.scoring.selector import KIND_SLUGS

SMALLEST_GROUP = 15  # calibration images a kind needs for a temperature of its own; fewer take the pooled one
_CANDIDATES = torch.logspace(-2, 3, 51, base=2.0)  # 1/4 to 8


def fit_temperature(logits: Tensor, targets: Tensor, kinds: Tensor) -> Tensor:
    """Temperatures of every kind in ALL_KINDS from logits of P(r > 1) (B, K), soft targets (B,), kinds (B,)."""
    temperatures = torch.full((len(KIND_SLUGS),), _best(logits, targets))
    for kind in kinds.unique().tolist():
        group = kinds == kind
        if int(group.sum()) >= SMALLEST_GROUP:
            temperatures[kind] = _best(logits[group], targets[group])
    return temperatures


def negative_log_likelihood(probability: Tensor, targets: Tensor) -> Tensor:
    """Mean over images of the cross-entropy between soft targets and P(r > 1), each (B,)."""
    return F.binary_cross_entropy(probability.clamp(1e-6, 1 - 1e-6), targets)


def _best(logits: Tensor, targets: Tensor) -> float:
    losses = [negative_log_likelihood(torch.sigmoid(logits / t).mean(1), targets) for t in _CANDIDATES]
    return float(_CANDIDATES[int(torch.stack(losses).argmin())])
