"""What makes both scores probabilities, so that the smaller of the two means something.

Selector: a temperature per kind of image, fitted on the calibration fold (Guo et al. 2017). It changes how sure the
scores are, hardly their order; ranking by the mean over heads may shift a little where heads disagree.

Policy: an offset of the logit. Its loss rewards what is better than the average image, so its scores lie around 0.5
whatever that average is, and the smaller of the two scores would mostly be the policy's. The offset brings the mean
score of the images learnt from to their mean P(not poor): calibration in the large, which asks for a mean only and
so does not mind that these images are known. Training itself goes by the logit without it.
"""

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import functional as F

from generation.scoring.selector import KIND_SLUGS

SMALLEST_GROUP = 15  # calibration images a kind needs for a temperature of its own; fewer take the pooled one
_LARGEST_OFFSET = 20.0
_SURE = 0.02  # a mean of 0 or 1 would ask for an infinite offset
_CANDIDATES = torch.logspace(-2, 3, 51, base=2.0)  # 1/4 to 8


def fit_temperature(logits: Tensor, targets: Tensor, kinds: Tensor) -> Tensor:
    """Temperatures of every kind in ALL_KINDS from logits of P(r > 1) (B, K), soft targets (B,), kinds (B,)."""
    temperatures = torch.full((len(KIND_SLUGS),), _best(logits, targets))
    for kind in kinds.unique().tolist():
        group = kinds == kind
        if int(group.sum()) >= SMALLEST_GROUP:
            temperatures[kind] = _best(logits[group], targets[group])
    return temperatures


def fit_offset(logits: Tensor, targets: Tensor) -> float:
    """The offset b with mean sigmoid(logits + b) = mean of the soft targets, both (B,)."""
    values = logits.double().cpu()
    wanted = targets.double().mean().clamp(_SURE, 1 - _SURE).item()
    limit = _LARGEST_OFFSET + values.abs().max().item()
    return brentq(lambda offset: torch.sigmoid(values + offset).mean().item() - wanted, -limit, limit)


def negative_log_likelihood(probability: Tensor, targets: Tensor) -> Tensor:
    """Mean over images of the cross-entropy between soft targets and P(r > 1), each (B,)."""
    return F.binary_cross_entropy(probability.clamp(1e-6, 1 - 1e-6), targets)


def _best(logits: Tensor, targets: Tensor) -> float:
    losses = [negative_log_likelihood(torch.sigmoid(logits / t).mean(1), targets) for t in _CANDIDATES]
    return float(_CANDIDATES[int(torch.stack(losses).argmin())])
