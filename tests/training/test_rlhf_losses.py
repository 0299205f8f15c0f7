"""The losses against independent formulas, and the sign that the predecessors got wrong."""

import math

import pytest
import torch

from training.rlhf.policy_loss import (
    advantages,
    baselines,
    contrast_loss,
    importance_ratios,
    policy_loss,
    rewards,
)
from training.rlhf.selector_loss import corn_loss

POOR, ACCEPTABLE, EXCELLENT = torch.eye(3)


# --- selector ---


def published_corn(logits: torch.Tensor, grades: list[int]) -> float:
    """CORN as its authors state it, for hard labels 0 to 2: sum of cross-entropies over all conditional examples."""
    total, count = 0.0, 0
    for task in range(2):
        for row, grade in zip(logits.tolist(), grades, strict=True):
            if grade > task - 1:
                probability = 1 / (1 + math.exp(-row[task]))
                total -= math.log(probability if grade > task else 1 - probability)
                count += 1
    return total / count


def test_with_hard_labels_the_selectors_loss_is_corn():
    torch.manual_seed(0)
    logits, grades = torch.randn(30, 1, 2), torch.randint(0, 3, (30,)).tolist()
    ours = corn_loss(logits, torch.eye(3)[grades], torch.ones(30, 1), label_smoothing=0)
    assert ours.item() == pytest.approx(published_corn(logits[:, 0], grades), rel=1e-5)


def test_soft_labels_are_the_mean_over_hard_ones():
    """A label of 30/50/20 % weighs like 100 images of which 30, 50 and 20 have each grade."""
    logits = torch.tensor([[[0.4, -1.1]]])
    many = torch.eye(3)[[0] * 30 + [1] * 50 + [2] * 20]
    hard = corn_loss(logits.expand(100, -1, -1), many, torch.ones(100, 1), label_smoothing=0)
    soft = corn_loss(logits, torch.tensor([[0.3, 0.5, 0.2]]), torch.ones(1, 1), label_smoothing=0)
    assert soft.item() == pytest.approx(hard.item(), rel=1e-5)


def test_bootstrap_weights_are_repetitions():
    torch.manual_seed(1)
    logits, labels = torch.randn(3, 1, 2), torch.eye(3)
    weighted = corn_loss(logits, labels, torch.tensor([[2.0], [0.0], [1.0]]))
    repeated = corn_loss(logits[[0, 0, 2]], labels[[0, 0, 2]], torch.ones(3, 1))
    assert weighted.item() == pytest.approx(repeated.item(), rel=1e-6)
    assert corn_loss(logits, labels, torch.zeros(3, 1)).item() == 0


# --- policy ---


def test_rewards_of_the_three_grades():
    assert rewards(torch.eye(3)).tolist() == pytest.approx([-1, 1 / 3, 1])
    assert rewards(torch.tensor([[0.5, 0.0, 0.5]])).item() == pytest.approx(0)


def test_the_baseline_of_a_large_group_is_its_mean_and_a_lone_prompt_still_teaches():
    reward = torch.cat([torch.full((500,), 0.8), torch.full((500,), -0.4), torch.tensor([1.0])])
    groups = torch.cat([torch.zeros(500), torch.ones(500), torch.tensor([2.0])]).long()
    value = baselines(reward, groups, torch.zeros(1001).long())
    assert value[0].item() == pytest.approx(0.8, abs=0.01)
    assert value[500].item() == pytest.approx(-0.4, abs=0.01)
    assert (reward - value)[-1] > 0.5


def test_the_gradient_is_that_of_the_expected_advantage():
    """-E[A(a)] = -A (2 pi - 1), differentiated by autograd without our score function."""
    logits = torch.linspace(-3, 3, 13, requires_grad=True)
    advantage = torch.linspace(-1, 1, 13)
    (ours,) = torch.autograd.grad(policy_loss(logits, advantage).sum(), logits)
    expected = -(advantage * (2 * torch.sigmoid(logits) - 1)).sum()
    (independent,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(ours, independent, atol=1e-6)


def test_no_gradient_flows_through_the_advantage():
    reward = torch.tensor([0.5, -0.5], requires_grad=True)
    advantage = advantages(reward, torch.zeros(2))
    assert not advantage.requires_grad
    assert advantages(torch.tensor([3.0, -3.0]), torch.zeros(2)).tolist() == [1, -1]


def test_poor_falls_and_excellent_rises():
    logits = torch.zeros(2, requires_grad=True)
    advantage = advantages(rewards(torch.stack([POOR, EXCELLENT])), torch.zeros(2))
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(50):
        optimizer.zero_grad()
        policy_loss(logits, advantage).sum().backward()
        optimizer.step()
    poor, excellent = torch.sigmoid(logits.detach())
    assert poor < 0.1
    assert excellent > 0.9


def roc_auc(scores: torch.Tensor, is_positive: torch.Tensor) -> float:
    pairs = scores[is_positive][:, None] - scores[~is_positive][None, :]
    return ((pairs > 0).float() + (pairs == 0).float() / 2).mean().item()


def test_the_published_loss_ranks_worse_than_chance_where_ours_ranks_well():
    """-mean(|R - s| log s), as the predecessor trains, against the signed advantage; same data, same network."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, 8, generator=generator)
    direction = torch.randn(8, generator=generator)
    quality = features @ direction / direction.norm() + 0.5 * torch.randn(600, generator=generator)
    grades = (quality > quality.quantile(0.3)).long() + (quality > quality.quantile(0.7)).long()
    labels = torch.eye(3)[grades]

    def train(loss_of) -> float:
        weight, bias = torch.zeros(8, requires_grad=True), torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.Adam([weight, bias], lr=0.05)
        for _ in range(500):
            optimizer.zero_grad()
            loss_of(features @ weight + bias).backward()
            optimizer.step()
        return roc_auc(-(features @ weight + bias).detach(), grades == 0)

    def published(logits: torch.Tensor) -> torch.Tensor:
        score = torch.sigmoid(logits)
        return -((grades / 2 - score).abs().detach() * torch.log(score.clamp(min=1e-6))).mean()

    reward = rewards(labels)
    advantage = advantages(reward, reward.mean())
    ours, theirs = train(lambda logits: policy_loss(logits, advantage).mean()), train(published)
    assert ours > 0.9
    assert theirs < 0.5


def test_importance_ratios_are_real_and_clipped():
    selected, accept = torch.tensor([0.9, 0.5, 0.99]), torch.tensor([0.3, 0.5, 0.01])
    ratios = importance_ratios(selected, accept)
    assert ratios[0].tolist() == pytest.approx([0.9 / 0.3, 0.2])  # 0.1 / 0.7 lies under the clip
    assert ratios[1].tolist() == pytest.approx([1, 1])
    assert ratios[2].tolist() == pytest.approx([5, 0.2])


def test_importance_ratios_weigh_the_two_actions():
    logits = torch.tensor([0.3], requires_grad=True)
    ratios, advantage = torch.tensor([[2.0, 0.5]]), torch.tensor([0.7])
    pi = 1 / (1 + math.exp(-0.3))
    expected = -(pi * 2.0 * 0.7 * math.log(pi) + (1 - pi) * 0.5 * -0.7 * math.log(1 - pi))
    assert policy_loss(logits, advantage, ratios).item() == pytest.approx(expected, rel=1e-5)


def test_the_contrast_asks_for_its_margin_and_no_more():
    own, other = torch.logit(torch.tensor([0.9, 0.5, 0.3])), torch.logit(torch.tensor([0.5, 0.4, 0.6]))
    assert contrast_loss(own, other).tolist() == pytest.approx([0.0, 0.1, 0.5], abs=1e-6)
