import numpy as np
import pytest
import torch

from generation.scoring.selector import KIND_SLUGS
from training.rlhf.calibration import fit_temperature
from training.rlhf.evaluation import (
    auc,
    bootstrap,
    brier,
    evaluate_scores,
    expected_calibration_error,
    human_ceiling,
)


def pairwise_auc(scores, labels) -> float:
    wins = [(p > n) + (p == n) / 2 for p in scores[labels == 1] for n in scores[labels == 0]]
    return float(np.mean(wins))


def test_auc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 60) / 5, rng.integers(0, 2, 60)
    assert auc(scores, labels) == pytest.approx(pairwise_auc(scores, labels))
    repeated = np.repeat([2, 1], 30)
    weighted = auc(scores, labels, repeated.astype(float))
    assert weighted == pytest.approx(pairwise_auc(np.repeat(scores, repeated), np.repeat(labels, repeated)))
    assert auc(scores, np.ones(60)) is None


def test_brier_and_calibration_error_of_known_cases():
    assert brier(np.array([1.0, 0.5]), np.array([1, 0])) == pytest.approx(0.125)
    says_80, happens_50 = np.full(1000, 0.8), np.tile([0, 1], 500)
    assert expected_calibration_error(says_80, happens_50) == pytest.approx(0.3, abs=0.02)
    rng = np.random.default_rng(0)
    honest = rng.random(20_000)
    assert expected_calibration_error(honest, rng.random(20_000) < honest) < 0.02


def test_the_bootstrap_interval_of_a_mean_has_the_textbook_width():
    values = np.random.default_rng(1).normal(size=400)
    estimate = bootstrap(lambda rows: float(values[rows].mean()), 400, seed=0, repeats=1000)
    half_width = 1.96 * values.std() / 20
    assert estimate.high - estimate.low == pytest.approx(2 * half_width, rel=0.15)
    assert estimate.low < estimate.value < estimate.high


def test_scores_are_measured_against_every_single_rating():
    good = np.array([0.9, 0.2, 0.6])
    grades = [np.array([3, 1]), np.array([1, 1, 2]), np.array([2])]
    figures = evaluate_scores(good, grades, seed=0)
    poor = np.array([0, 1, 1, 1, 0, 0])
    stated = 1 - np.array([0.9, 0.9, 0.2, 0.2, 0.2, 0.6])
    assert figures["auc_poor"]["value"] == pytest.approx(pairwise_auc(stated, poor))
    assert figures["brier"]["value"] == pytest.approx(np.mean((stated - poor) ** 2))


def test_the_human_ceiling_is_one_half_for_raters_who_guess_and_one_for_raters_who_agree():
    rng = np.random.default_rng(0)
    guesses = [rng.integers(1, 4, 3) for _ in range(400)]
    assert human_ceiling(guesses, seed=0)["value"] == pytest.approx(0.5, abs=0.05)
    agreed = [np.full(2, grade) for grade in rng.integers(1, 4, 50)]
    assert human_ceiling(agreed, seed=0)["value"] == 1
    assert human_ceiling([np.array([1])], seed=0) == {"value": None, "low": None, "high": None, "images": 0}


def test_the_temperature_that_made_the_labels_is_found_again():
    torch.manual_seed(0)
    logits = 2 * torch.randn(800, 1)
    targets = torch.sigmoid(logits[:, 0] / 2.5)
    kinds = torch.tensor([0] * 790 + [1] * 10)
    temperature = fit_temperature(logits, targets, kinds)
    assert temperature.shape == (len(KIND_SLUGS),)
    assert temperature[0].item() == pytest.approx(2.5, rel=0.08)
    assert temperature[1] == temperature[5]  # ten images are too few for a temperature of their own
