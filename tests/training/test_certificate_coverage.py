"""The simulated world is what it says, and splits of a pool keep rated and fresh images apart."""

import numpy as np
import pytest

from generation.certificate import Promise
from training.simulation.certificate_coverage import NormalWorld, main, repeat_draw, simulate, table


def test_the_formulas_of_the_world_are_those_of_its_draws():
    world = NormalWorld(0.85, 0.3)
    scores, is_poor = world.draw(200_000, np.random.default_rng(0))
    assert is_poor.mean() == pytest.approx(0.3, abs=0.005)
    some = np.random.default_rng(1).permutation(len(scores))[:3000]
    pairs = scores[some][~is_poor[some]][:, None] > scores[some][is_poor[some]]
    assert pairs.mean() == pytest.approx(0.85, abs=0.02)
    for threshold in (-1.0, 0.0, 1.0):
        assert world.share(threshold) == pytest.approx((scores >= threshold).mean(), abs=0.005)
        assert world.risk(threshold) == pytest.approx(is_poor[scores >= threshold].mean(), abs=0.01)
    assert world.best_yield(0.10) == pytest.approx(0.56, abs=0.01)  # research, section 3.3


def test_a_naive_threshold_would_be_noticed():
    """The same world with delta near 1 tests almost nothing: the share of broken promises must show it."""
    world = NormalWorld(0.85, 0.3)
    careful = simulate(world, num_images=200, promise=Promise(), num_repeats=150, num_unrated=500)
    careless = simulate(world, num_images=200, promise=Promise(delta=0.6), num_repeats=150, num_unrated=500)
    assert careful.broken_share <= 0.10 < 0.25 < careless.broken_share
    assert careful.mean_yield < careless.mean_yield


def test_splits_of_a_pool():
    random = np.random.default_rng(2)
    scores, is_poor = NormalWorld(0.92, 0.3).draw(3000, random)
    found = repeat_draw(scores, is_poor, num_images=300, promise=Promise(), num_repeats=40)
    assert found.num_repeats == 40 and found.num_broken <= 6 and 0.4 < found.mean_yield < 0.75
    wrong = repeat_draw(
        scores, is_poor, num_images=300, promise=Promise(), is_truly_poor=np.ones(3000, bool), num_repeats=10
    )
    assert wrong.num_broken + wrong.num_refused == 10  # where the truth is another, that is said
    with pytest.raises(ValueError, match="2000 fresh"):
        repeat_draw(scores[:2500], is_poor[:2500], num_images=300, promise=Promise())


def test_the_table_and_the_command(tmp_path, capsys):
    lines = list(table(num_repeats=2, num_unrated=50, numbers=(100,)))
    assert len(lines) == 10 and lines[2].startswith("| 0.85 | 0.15 | 0.05 |")
    scores, is_poor = NormalWorld(0.92, 0.3).draw(3000, np.random.default_rng(3))
    np.savez(tmp_path / "pool.npz", score=scores, poor=is_poor, gold=is_poor)
    main(["--pool", str(tmp_path / "pool.npz"), "--repeats", "5"])
    assert "5 draws of 300 rated images" in capsys.readouterr().out
