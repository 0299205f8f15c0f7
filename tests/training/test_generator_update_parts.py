"""Choosing images, and accepting or refusing what was learnt from them."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from generation.diffusion.phantoms import random_phantom
from training.evaluation.ms_ssim import PairTable
from training.rlhf.generator_update.acceptance import (
    Change,
    Decision,
    PairedRates,
    copies_of_training_images,
    coverage_change,
    diversity_change,
)
from training.rlhf.generator_update.selection import Scored, choose, prompt_groups, weigh
from training.rlhf.generator_update.settings import UpdateError, UpdateSettings

FILES = {"generator": "g", "selector_file": "s", "policy_file": "p"}

# --- choosing ---


def test_the_best_of_every_group_are_chosen():
    groups = ["easy"] * 10 + ["hard"] * 10
    scores = np.concatenate([np.linspace(0.9, 0.99, 10), np.linspace(0.1, 0.19, 10)])
    assert choose(scores, groups, share=0.3).tolist() == [7, 8, 9, 17, 18, 19]


def test_a_group_drawn_often_takes_no_more_than_an_average_one():
    rng = np.random.default_rng(0)
    groups = ["often"] * 80 + ["a"] * 10 + ["b"] * 10
    chosen = choose(rng.random(100), groups, share=0.3)
    assert Counter(np.array(groups)[chosen].tolist()) == {"often": 10, "a": 3, "b": 3}


def test_ties_go_to_the_earlier_image_and_every_group_gives_one():
    assert choose([0.5] * 6, ["x"] * 4 + ["y", "z"], share=0.25).tolist() == [0, 4, 5]


def test_the_worst_of_every_group_are_unwanted_only_where_asked_for():
    scores, groups = [0.1, 0.5, 0.9, 0.2, 0.3, 0.8], ["a"] * 3 + ["b"] * 3
    assert weigh(scores, groups, share=0.3, with_unwanted=True).tolist() == [-1, 0, 1, -1, 0, 1]
    assert weigh(scores, groups, share=0.3, with_unwanted=False).tolist() == [0, 0, 1, 0, 0, 1]
    assert weigh([0.4], ["alone"], share=0.3, with_unwanted=True).tolist() == [1]


@pytest.mark.parametrize(("scores", "groups", "share"), [([], [], 0.3), ([1.0], ["a", "b"], 0.3), ([1.0], ["a"], 0)])
def test_nothing_to_choose_from_is_refused(scores, groups, share):
    with pytest.raises(ValueError, match="share|scores"):
        choose(scores, groups, share=share)


def test_prompts_that_are_rare_are_joined_by_kind():
    labels = ["a"] * 4 + ["b", "c"]
    assert prompt_groups(labels, ["OCT"] * 6) == ["a"] * 4 + ["other OCT"] * 2


def test_an_image_scores_what_it_would_still_be_served_at():
    assert Scored("OCT: drusen", serving=0.8, alignment=0.3).score == 0.3


# --- accepting ---


def rates(mended: int, spoilt: int, both: int = 10, neither: int = 100) -> PairedRates:
    before = [True] * mended + [False] * spoilt + [True] * both + [False] * neither
    after = [False] * mended + [True] * spoilt + [True] * both + [False] * neither
    return PairedRates(np.array(before), np.array(after))


@pytest.mark.parametrize(("mended", "spoilt"), [(12, 3), (3, 12), (7, 7), (0, 0), (5, 0)])
def test_the_pairs_are_tested_exactly(mended, spoilt):
    found = rates(mended, spoilt)
    expected = binomtest(mended, mended + spoilt, 0.5, alternative="greater").pvalue if mended + spoilt else 1
    assert found.p_fall == pytest.approx(expected)
    if mended + spoilt:
        assert found.p_rise == pytest.approx(binomtest(spoilt, mended + spoilt, alternative="greater").pvalue)


def test_an_unchanged_poor_rate_is_called_lower_at_most_one_time_in_twenty():
    rng = np.random.default_rng(1)
    found = [PairedRates(*(rng.random((2, 200)) < 0.3)).p_fall <= 0.05 for _ in range(1000)]
    assert np.mean(found) < 0.06


NONE = Change(before=0.5, after=0.5, low=-0.01, high=0.01)


def decision(poor=None, diversity=NONE, coverage=NONE, copies=None) -> Decision:
    return Decision(poor or rates(30, 5), "a test says so", diversity, coverage, copies or rates(0, 0))


def test_accepted_only_where_nothing_speaks_against_it():
    assert decision().is_accepted and decision().to_dict()["objections"] == []
    fallen = Change(before=0.5, after=0.49, low=-0.06, high=0.01)
    for refused, text in (
        (decision(poor=rates(7, 6)), "poor rate does not fall"),
        (decision(diversity=fallen), "Diversity may fall by more than 5\u00a0%"),
        (decision(coverage=fallen), "Coverage may fall by more than 5\u00a0%"),
        (decision(coverage=Change(0.5, 0.5, float("nan"), float("nan"))), "Coverage may fall"),
        (decision(copies=rates(0, 9)), "resemble a training image"),
    ):
        assert not refused.is_accepted
        assert len(refused.objections) == 1 and text in refused.objections[0]


def test_all_objections_are_told():
    fallen = Change(before=0.5, after=0.2, low=-0.7, high=-0.5)
    assert len(decision(rates(0, 9), fallen, fallen, rates(0, 9)).objections) == 4


def phantoms(number: int, *, first: int) -> torch.Tensor:
    pictures = np.stack([random_phantom(first + index, 32).pixels for index in range(number)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def test_diversity_falls_where_images_become_alike():
    labels = ["a"] * 12 + ["b"] * 12
    pixels = phantoms(24, first=100)
    alike = pixels.clone()
    alike[:12] = (pixels[:12].float() * 0.3 + pixels[:1].float() * 0.7).byte()
    before, after = (PairTable(each, labels, seed=0) for each in (pixels, alike))
    change = diversity_change(before, after, labels, seed=0)
    assert change.after < change.before and change.high < -0.05
    same = diversity_change(before, before, labels, seed=0)
    assert (same.relative, same.low, same.high) == (0, 0, 0)


def test_variety_beyond_that_of_real_images_need_not_be_kept():
    labels = ["a"] * 12 + ["b"] * 12
    real = phantoms(24, first=100)
    noise = torch.randint(-90, 90, real.shape, generator=torch.Generator().manual_seed(0))
    noisy = (real.int() + noise).clamp(0, 255).byte()
    tables = [PairTable(each, labels, seed=0) for each in (noisy, real, real)]
    alone = diversity_change(*tables[:2], labels, seed=0)
    beside = diversity_change(*tables[:2], labels, seed=0, real=tables[2])
    assert alone.relative < -0.03 and alone.high < 0
    assert beside.relative == 0 and beside.low < 0 < beside.high
    collapsed = real.clone()
    collapsed[:] = real[:1]
    lost = diversity_change(tables[0], PairTable(collapsed, labels, seed=0), labels, seed=0, real=tables[2])
    assert lost.high < -0.05


def test_coverage_falls_where_a_cluster_is_forgotten():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 8)) * 5
    real, before = (centres[rng.integers(0, 6, 300)] + rng.normal(size=(300, 8)) for _ in range(2))
    after = before.copy()
    lost = np.linalg.norm(before[:, None] - centres, axis=2).argmin(1) == 0
    after[lost] = centres[1] + rng.normal(size=(lost.sum(), 8))
    change = coverage_change(real, before, after)
    assert change.low < change.relative < -0.1 and change.high < -0.05


def test_the_lower_bound_of_coverage_holds_about_19_times_in_20():
    """Both samples come from one distribution, so the true change is 0."""
    rng = np.random.default_rng(2)
    below = 0
    for _ in range(60):
        real, before, after = rng.normal(size=(3, 120, 4))
        below += coverage_change(real, before, after).low > 0
    assert below <= 8


def test_samples_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="pairs"):
        coverage_change(np.zeros((9, 2)), np.zeros((4, 2)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="larger sample"):
        empty = PairTable(phantoms(2, first=0), ["a", "b"], seed=0)
        diversity_change(empty, empty, ["a", "b"], seed=0)


# --- copies ---


def test_a_copy_is_found_mirrored_or_not_and_a_new_image_is_none():
    training, held_out, new = (phantoms(60, first=first) for first in (0, 1000, 2000))
    noisy = (training[:20].float() + torch.randn(20, 3, 32, 32) * 4).clamp(0, 255).byte()
    found = copies_of_training_images(torch.cat([noisy, new]), training=training, held_out=held_out)
    assert found[:20].mean() >= 0.9
    assert found[20:].mean() <= 0.1


# --- settings ---


def test_settings_through_json_and_back():
    settings = UpdateSettings.from_dict({**FILES, "learning_rate": 1e-5, "num_inference_steps": None})
    assert UpdateSettings.from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"max_steps": 2001}, "max_steps is 2001: it must lie between 1 and 2000"),
        ({"train_batch_size": 7}, "must be even"),
        ({"share": 0}, "share is 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"seed": True}, "seed is True"),
        ({"stpes": 4}, "stpes is no setting"),
        ({"generator": ""}, "generator is missing"),
        ({"real_data": 4}, "give a text"),
        ({"objective": "ddpo"}, "one of reward_weighted, kto"),
        ({"objective": "kto", "share": 0.6}, "must not meet"),
        ({"mixed_precision": "fp8"}, "one of auto, no, bf16, fp16"),
    ],
)
def test_wrong_settings_are_named(values, text):
    with pytest.raises(UpdateError, match=text):
        UpdateSettings.from_dict({**FILES, **values})
