"""The predecessors' rule does what was found in it: it loses rows and pushes every score up; repaired it learns."""

import pytest
import torch

from generation.scoring.selector import SelectorHeads
from training.rlhf.evaluation import auc
from training.simulation.predecessors import (
    published_loss,
    published_ratings,
    repaired_loss,
    repaired_ratings,
    train_heads,
)


def test_poor_ratings_of_all_but_the_highest_level_are_dropped():
    grades, levels = torch.tensor([1.0, 1, 1, 2, 3, 3]), torch.tensor([1.0, 2, 3, 1, 1, 3])
    reward, kept = published_ratings(grades, levels)
    assert kept.tolist() == [False, False, True, False, True, True]
    assert reward.tolist() == [0, 0, 1], "an excellent of level 1 counts as poor"
    assert repaired_ratings(grades).tolist() == [0, 0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("reward", [0.0, 0.5, 1.0])
def test_as_published_every_score_is_pushed_up_and_repaired_towards_the_reward(reward):
    logits = torch.tensor([-1.0, 0.3, 2.0], requires_grad=True)
    rewards = torch.full((3,), reward)
    (published,) = torch.autograd.grad(published_loss(logits, rewards).sum(), logits)
    assert (published <= 0).all()
    (repaired,) = torch.autograd.grad(repaired_loss(logits, rewards).sum(), logits)
    assert torch.equal(repaired.sign(), (torch.sigmoid(logits.detach()) - rewards).sign())


def test_repaired_it_ranks_and_as_published_it_lets_poor_images_pass():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 4, generator=generator)
    grades = 1 + (features[:, 0] > -0.5).long() + (features[:, 0] > 0.5).long()
    levels = torch.randint(1, 4, (300,), generator=generator)
    scores = {}
    for as_published in (True, False):
        torch.manual_seed(0)
        heads = SelectorHeads(4, 8, 2)
        train_heads(heads, features, grades, levels, as_published=as_published, seed=0)
        scores[as_published] = torch.sigmoid(heads(features)[..., 0]).mean(1).detach().numpy()
    is_poor = (grades == 1).numpy()
    assert auc(-scores[False], is_poor) > 0.95
    assert (scores[True][is_poor] > 0.6).mean() > (scores[False][is_poor] > 0.6).mean() + 0.3
