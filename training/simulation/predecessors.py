"""The rule of the predecessors' public re-implementation, as published and repaired: arms of benchmarks, never used.

As published (research/rating-to-generator.md, section 0): the loss of both networks is |r - s| log s with the sign
that pushes every score up, the rating is multiplied by level / 3 and rows that fall below 1 are dropped, several
ratings of an image are separate rows. Repaired: the advantage keeps its sign, stands before both log-probabilities,
ratings stay as they are given, every rater counts alike. The network is ours, so that the rule alone differs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from generation.scoring.selector import SelectorHeads
from training.rlhf.policy_loss import policy_loss

NUM_STEPS = 600
LEARNING_RATE = 3e-3
_HIGHEST = 3  # grade, and level of expertise


def published_ratings(grades: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Grades (R,) and levels (R,), 1 to 3 -> rewards in [0, 1] of the rows that are left, and which are left (R,)."""
    weighted = grades * levels / _HIGHEST
    kept = weighted >= 1
    return (weighted[kept] - 1) / (_HIGHEST - 1), kept


def published_loss(logits: Tensor, reward: Tensor) -> Tensor:
    """-|r - s| log s, (R,): the size of the advantage without its sign, not followed by gradients."""
    score = torch.sigmoid(logits)
    return -(reward - score).abs().detach() * F.logsigmoid(logits)


def repaired_ratings(grades: Tensor) -> Tensor:
    """Grades (R,) -> rewards in [0, 1]; every row stays and counts alike."""
    return (grades - 1) / (_HIGHEST - 1)


def repaired_loss(logits: Tensor, reward: Tensor) -> Tensor:
    """The expectation over accepting and rejecting of -(r - s) log pi, (R,): signed, both actions."""
    return policy_loss(logits, (reward - torch.sigmoid(logits)).detach())


def train_heads(
    heads: SelectorHeads, features: Tensor, grades: Tensor, levels: Tensor, *, as_published: bool, seed: int
) -> None:
    """Train the heads' first logit on rating rows: features (R, F), grades (R,), levels (R,)."""
    torch.manual_seed(seed)
    reward = repaired_ratings(grades.float())
    if as_published:
        reward, kept = published_ratings(grades.float(), levels.float())
        features = features[kept]
    loss_of = published_loss if as_published else repaired_loss
    optimizer = torch.optim.AdamW(heads.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    for _ in range(NUM_STEPS):
        logits = heads(features)[..., 0]
        optimizer.zero_grad()
        loss_of(logits.flatten(), reward[:, None].expand_as(logits).flatten()).mean().backward()
        optimizer.step()
