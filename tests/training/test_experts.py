"""The simulated experts, against what their formula says they must do."""

import numpy as np
import pytest

from training.simulation.experts import Expert, draw_expert, rate

QUALITY = np.linspace(-2, 2, 4000)


def grades(level, seed=0, bias=0.0):
    return rate(QUALITY, Expert(level, bias), np.random.default_rng(seed))


def test_same_seed_same_grades():
    assert np.array_equal(grades(2, seed=5), grades(2, seed=5))
    assert not np.array_equal(grades(2, seed=5), grades(2, seed=6))


def test_a_senior_expert_orders_images_better_than_a_trainee():
    correlation = {level: np.corrcoef(QUALITY, grades(level))[0, 1] for level in (1, 2, 3)}
    assert correlation[3] > correlation[2] > correlation[1] > 0.5


def test_without_noise_thirty_percent_are_poor_and_thirty_excellent(monkeypatch):
    monkeypatch.setattr("training.simulation.experts.SKILL_BY_LEVEL", {3: type("", (), {"noise_std": 0, "lapse": 0})})
    share = np.bincount(grades(3), minlength=4)[1:] / len(QUALITY)
    assert share == pytest.approx([0.3, 0.4, 0.3], abs=0.001)


def test_a_lenient_expert_calls_fewer_images_poor():
    assert (grades(3, bias=0.6) == 1).mean() < (grades(3) == 1).mean() < (grades(3, bias=-0.6) == 1).mean()


def test_a_few_very_bad_images_do_not_make_the_others_alike():
    skewed = np.where(np.arange(4000) < 40, -1000.0, QUALITY)
    noise = np.random.default_rng(0)
    assert np.corrcoef(QUALITY[40:], rate(skewed, Expert(3, 0.0), noise)[40:])[0, 1] > 0.8


def test_lapses_alone_are_uniform(monkeypatch):
    monkeypatch.setattr("training.simulation.experts.SKILL_BY_LEVEL", {3: type("", (), {"noise_std": 0, "lapse": 1})})
    share = np.bincount(grades(3), minlength=4)[1:] / len(QUALITY)
    assert share == pytest.approx([1 / 3] * 3, abs=0.03)


def test_levels_outside_the_scale_are_refused():
    with pytest.raises(ValueError, match="1, 2, 3"):
        draw_expert(4, np.random.default_rng(0))
