"""The policy's loss: a contextual bandit with full feedback, and an alignment contrast.

    R = -1 P(poor) + 1/3 P(acceptable) + 1 P(excellent)         reward of accepting
    A = clip(R - V(prompt group), -1, 1)                        signed; no gradient flows through it
    L = - sum over a of  pi(a) rho(a) A(a) log pi(a),           A(accept) = A, A(reject) = -A

The sum over both actions is the expectation in closed form: pi(a) and rho(a) are constants in it, so with rho = 1
the gradient is exactly that of -E[A(a)], the score function's. rho is 1 in stage 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

REWARDS = (-1.0, 1.0 / 3.0, 1.0)  # of grades 1, 2, 3
HINGE_MARGIN = 0.2  # by which another prompt must score lower
RATIO_LOW, RATIO_HIGH = 0.2, 5.0
GROUP_PRIOR = 4.0  # images of its kind that a prompt group's baseline is padded with


def rewards(soft_labels: Tensor) -> Tensor:
    """Soft labels (B, 3) -> expected reward of accepting, (B,) in [-1, 1]."""
    return soft_labels @ soft_labels.new_tensor(REWARDS)


def baselines(reward: Tensor, groups: Tensor, kinds: Tensor) -> Tensor:
    """V (N,): the mean reward of each image's prompt group, padded with GROUP_PRIOR images of its kind's mean.

    Without the padding a prompt with a single image would always have advantage 0 and teach nothing.
    """
    kind_sum, kind_count = _sums(reward, kinds)
    group_sum, group_count = _sums(reward, groups)
    kind_mean = (kind_sum / kind_count.clamp(min=1))[kinds]
    return (group_sum[groups] + GROUP_PRIOR * kind_mean) / (group_count[groups] + GROUP_PRIOR)


def _sums(values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    size = int(index.max()) + 1
    total = values.new_zeros(size).index_add(0, index, values)
    return total, values.new_zeros(size).index_add(0, index, torch.ones_like(values))


def advantages(reward: Tensor, baseline: Tensor) -> Tensor:
    """A = clip(R - V, -1, 1): signed, detached."""
    return (reward - baseline).clamp(-1, 1).detach()


def importance_ratios(selected: Tensor, accept: Tensor) -> Tensor:
    """pi_selected(a) / pi(a) for accept and reject, (B, 2), clipped to [0.2, 5], detached.

    ``selected``: (B,) the selector's probability that the image is good, the policy under which it was passed;
    ``accept``: (B,) the policy's own probability of accepting.
    """
    wanted = torch.stack([selected, 1 - selected], dim=1)
    own = torch.stack([accept, 1 - accept], dim=1)
    return (wanted / own.clamp(min=1e-6)).clamp(RATIO_LOW, RATIO_HIGH).detach()


def policy_loss(logits: Tensor, advantage: Tensor, ratios: Tensor | None = None) -> Tensor:
    """Loss of each image, (B,), from logits of accepting (B,), A (B,) and ratios (B, 2) (None: all 1)."""
    log_pi = torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=1)
    signed = torch.stack([advantage, -advantage], dim=1).detach()
    weights = log_pi.exp().detach() * signed
    if ratios is not None:
        weights = weights * ratios
    return -(weights * log_pi).sum(1)


def contrast_loss(logits: Tensor, other_logits: Tensor, margin: float = HINGE_MARGIN) -> Tensor:
    """Hinge of each image, (B,): its score with another prompt must lie ``margin`` under its score with its own."""
    return F.relu(margin - (torch.sigmoid(logits) - torch.sigmoid(other_logits)))
