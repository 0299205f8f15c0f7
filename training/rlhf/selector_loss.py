"""CORN with soft targets: conditional training of an ordinal grade (Shi, Cao, Raschka 2021).

logit 1: P(r > 1),  trained on every image
logit 2: P(r > 2 | r > 1),  trained on the images with r > 1, each by its probability of being one
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from generation.scoring.selector import SelectorHeads

LABEL_SMOOTHING = 0.05
_LBFGS_ITERATIONS = 100


def smooth(targets: Tensor, amount: float = LABEL_SMOOTHING) -> Tensor:
    """Pull probabilities towards one half: 1 becomes 1 - amount / 2, 0 becomes amount / 2."""
    return targets * (1 - amount) + amount / 2


def corn_targets(soft_labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Soft labels (B, 3) -> P(r > 1), P(r > 2 | r > 1) and the second task's row weight P(r > 1), each (B,)."""
    above_poor = soft_labels[:, 1] + soft_labels[:, 2]
    conditional = soft_labels[:, 2] / above_poor.clamp(min=1e-6)
    return above_poor, conditional.clamp(0, 1), above_poor


def corn_row_weights(soft_labels: Tensor, weights: Tensor) -> Tensor:
    """What each image counts in each task of each head, (B, K, 2): its bootstrap weight (B, K) by the condition."""
    condition = corn_targets(soft_labels)[2]
    return torch.stack([torch.ones_like(condition), condition], dim=1)[:, None, :] * weights[:, :, None]


def corn_loss(
    logits: Tensor,
    soft_labels: Tensor,
    weights: Tensor,
    *,
    label_smoothing: float = LABEL_SMOOTHING,
    total: float | None = None,
) -> Tensor:
    """Mean binary cross-entropy over the rows where each condition holds.

    ``logits`` (B, K, 2) of K heads; ``soft_labels`` (B, 3); ``weights`` (B, K) how often each head's bootstrap
    sample holds the image. A batch that a head has none of contributes nothing to it. ``total``: the sum of the row
    weights to divide by, where these rows are one process' share of a batch.
    """
    first, second, _ = corn_targets(soft_labels)
    targets = torch.stack([first, second], dim=1)[:, None, :].expand_as(logits)
    targets = smooth(targets, label_smoothing)
    row_weights = corn_row_weights(soft_labels, weights)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    total = row_weights.sum() if total is None else row_weights.new_tensor(total)
    return (losses * row_weights).sum() / total.clamp(min=1e-6)


def fit_linear_heads(
    heads: SelectorHeads, features: Tensor, soft_labels: Tensor, weights: Tensor, *, penalties: Tensor
) -> None:
    """Fit the linear part of each head, by L-BFGS, to features (N, F), labels (N, 3), weights (N, K).

    ``penalties`` (F,): on the squared weight of each feature.

    A convex problem of about a hundred numbers: done at once, before the networks learn what it misses.
    """
    optimizer = torch.optim.LBFGS(
        [heads.linear_weight, heads.linear_bias], max_iter=_LBFGS_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = corn_loss(heads.linear(features), soft_labels, weights)
        # corn_loss is a mean over heads and tasks; the penalty is put on the same footing.
        loss = loss + (penalties[:, None] * heads.linear_weight.square()).sum() / (2 * weights.shape[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad(set_to_none=True)
