"""The linear start: what it foretells of images it was not fitted to, and labels that heed it."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from generation.scoring.architecture import SelectorArchitecture
from generation.scoring.selector import Selector, SelectorConfig
from training.rlhf.linear_start import LEAST_PRIOR, NUM_FOLDS, LinearStart, draw_folds, grade_probabilities
from training.rlhf.selector_loss import LABEL_SMOOTHING

COUNT = 400


@pytest.fixture
def start() -> LinearStart:
    torch.manual_seed(0)
    architecture = SelectorArchitecture(
        patch_size=8, embed_dim=16, num_layers=1, num_heads=2, mlp_dim=16, perception_dim=4, pretrained=None
    )
    selector = Selector(SelectorConfig(16, architecture)).eval()
    return LinearStart(selector, torch.randn(COUNT, selector.heads.linear_weight.shape[1]), True)


def labels_of(start: LinearStart, noise: float = 0.5) -> torch.Tensor:
    """Grades that follow the last two features, the strengths, which are penalised least."""
    quality = start.features[:, -1] - start.features[:, -2] + noise * torch.randn(COUNT)
    return torch.eye(3)[(quality > -0.6).long() + (quality > 0.6).long()]


def test_a_group_is_in_one_fold_and_folds_are_even():
    groups = np.repeat(np.arange(50), 3)
    folds = draw_folds(groups, seed=1).numpy()
    assert all(len(set(folds[groups == group])) == 1 for group in range(50))
    assert np.bincount(folds).tolist() == [30] * NUM_FOLDS
    assert not np.array_equal(folds, draw_folds(groups, seed=2).numpy())


def test_grades_follow_from_conditional_logits():
    logits = torch.tensor([[0.3, -1.2]])
    above, further = expit(0.3), expit(-1.2)
    expected = [1 - above, above * (1 - further), above * further]
    assert grade_probabilities(logits)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_what_is_foretold_is_the_ridge_fit_to_the_other_folds(start):
    """The first task's fit, by another optimiser, from the formula."""
    labels, folds = labels_of(start), torch.arange(COUNT) % NUM_FOLDS
    foretold = start.foretell(labels, folds)
    rest = (folds != 2).numpy()
    x, good = start.features.numpy()[rest].astype(float), 1 - labels[:, 0].numpy()[rest].astype(float)
    target = good * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / 2
    rows = len(good) + good.sum()  # of both tasks, over which the loss is a mean
    penalty = np.full(x.shape[1], 300.0)
    penalty[-13:] = 40.0
    penalty /= len(good)

    def loss(values):
        logit = x @ values[1:] + values[0]
        return (np.logaddexp(0, logit) - target * logit).sum() / rows + (penalty * values[1:] ** 2).sum() / 2

    best = minimize(loss, np.zeros(x.shape[1] + 1), method="BFGS").x
    poor = 1 - expit(start.features.numpy()[~rest] @ best[1:] + best[0])
    assert foretold[~rest, 0].numpy() == pytest.approx(np.clip(poor, LEAST_PRIOR, 1), abs=0.01)
    assert foretold.sum(1).numpy() == pytest.approx(np.ones(COUNT), abs=1e-6)


def test_an_image_says_nothing_of_its_own_forecast(start):
    labels, folds = labels_of(start), torch.arange(COUNT) % NUM_FOLDS
    before = start.foretell(labels, folds)
    turned = labels.clone()
    turned[folds == 3] = labels[folds == 3].flip(1)
    after = start.foretell(turned, folds)
    assert torch.allclose(before[folds == 3], after[folds == 3], atol=1e-5)
    assert (before[folds != 3] - after[folds != 3]).abs().max() > 0.02


def test_labels_of_others_stay_and_ratings_are_read_beside_the_forecast(start):
    """By Bayes by hand, with one rating an image that is right in 0.7 of cases: labels come nearer to the truth."""
    truth = labels_of(start, noise=0.0)
    generator = torch.Generator().manual_seed(3)
    said = truth @ torch.tensor([[0.7, 0.2, 0.1], [0.15, 0.7, 0.15], [0.1, 0.2, 0.7]])
    given = torch.multinomial(said, 1, generator=generator)[:, 0]
    likelihood = torch.tensor([[0.7, 0.2, 0.1], [0.15, 0.7, 0.15], [0.1, 0.2, 0.7]])[:, given].T

    def relabel(prior: torch.Tensor) -> torch.Tensor:
        return prior * likelihood / (prior * likelihood).sum(1, keepdim=True)

    own = relabel(torch.full((COUNT, 3), 1 / 3))
    items = torch.arange(20, COUNT)
    part = LinearStart(start.selector, start.features[items], True)
    again = part.label_again(own, items, draw_folds(np.arange(len(items)), seed=0), relabel)
    assert torch.equal(again[:20], own[:20])
    right = [(each[items] * truth[items]).sum(1).mean().item() for each in (own, again)]
    assert right[1] > right[0] + 0.02
    assert again.sum(1).numpy() == pytest.approx(np.ones(COUNT), abs=1e-5)


def test_too_few_groups_foretell_nothing(start):
    labels = labels_of(start)
    folds = draw_folds(np.arange(COUNT) % (NUM_FOLDS - 1), seed=0)
    assert start.label_again(labels, torch.arange(COUNT), folds, relabel=None) is labels
