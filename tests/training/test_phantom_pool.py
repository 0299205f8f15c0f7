"""The benchmark's pool: known quality, ratings that follow it."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from training.simulation.pool import MISMATCH_SEVERITY, draw_panel, draw_pool, rate_pool

SIZE = 32


def test_the_same_seed_draws_the_same_pool_and_another_seed_another():
    first, again, other = (draw_pool(12, seed=seed, mismatch_rate=0.3, size=SIZE) for seed in (4, 4, 5_000))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.prompts == again.prompts
    assert np.array_equal(first.quality, again.quality)
    assert not np.array_equal(first.pixels, other.pixels)


def test_a_wrong_prompt_costs_quality_and_nothing_else_changes():
    right, wrong = (draw_pool(30, seed=1, mismatch_rate=rate, size=SIZE) for rate in (0.0, 1.0))
    assert np.array_equal(right.pixels, wrong.pixels)
    assert wrong.is_mismatched.all() and not right.is_mismatched.any()
    assert all(a != b for a, b in zip(right.prompts, wrong.prompts, strict=True))
    assert wrong.quality == pytest.approx(-(1 - (1 + right.quality) * (1 - MISMATCH_SEVERITY)))


def test_quality_spreads_and_three_in_ten_are_poor():
    pool = draw_pool(300, seed=2, size=16)
    assert 0.29 <= pool.is_poor.mean() <= 0.31
    assert 0.12 <= (pool.quality == 0).mean() <= 0.28  # one in five is clean
    assert pool.quality.min() < -0.9


def test_ratings_follow_quality_better_the_higher_the_level():
    pool, rank = draw_pool(600, seed=3, size=16), {}
    for level in (1, 3):
        ratings = rate_pool(pool, draw_panel(seed=0, levels=[level] * 4), ratings_per_image=1, seed=0)
        assert sorted(set(ratings.grade.tolist())) == [1, 2, 3]
        rank[level] = spearmanr(ratings.grade, pool.quality[ratings.image]).statistic
    assert rank[3] > rank[1] + 0.1 > 0.3


def test_no_expert_rates_an_image_twice():
    pool = draw_pool(40, seed=6, size=16)
    ratings = rate_pool(pool, draw_panel(seed=1), ratings_per_image=3, seed=2)
    pairs = set(zip(ratings.image.tolist(), ratings.rater.tolist(), strict=True))
    assert len(pairs) == 120 and set(ratings.image.tolist()) == set(range(40))
    assert set(ratings.rater.tolist()) == set(range(6))
