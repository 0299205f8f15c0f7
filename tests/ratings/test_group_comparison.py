"""Two groups of images, and real against synthetic."""

import itertools
import json
from math import log
from pathlib import Path

import numpy as np
import pytest

from ratings.agreement.comparison import CALLED_REAL, CALLED_SYNTHETIC, compare_groups, discrimination
from ratings.agreement.estimate import Bootstrap, share_estimate
from ratings.agreement.table import RatingTable

GOLDEN = json.loads((Path(__file__).parent / "golden" / "agreement.json").read_text())["two_groups"]
GRADES = np.array(GOLDEN["grades"])
IS_FIRST = np.arange(len(GRADES)) < GOLDEN["num_first"]


def matrix(grades, **options) -> RatingTable:
    return RatingTable.from_matrix(np.asarray(grades), **options)


def test_one_reader_is_the_mann_whitney_test():
    found = compare_groups(matrix(GRADES[:, :1]), IS_FIRST)
    assert found.superiority.estimate == pytest.approx(GOLDEN["superiority_of_first_reader"], abs=1e-9)
    assert found.p_value == pytest.approx(GOLDEN["p_value_of_first_reader"], abs=1e-9)
    assert found.superiority.low < found.superiority.estimate < found.superiority.high
    assert "other readers" in found.superiority.reason and "images," in found.superiority.method


def test_two_grades_are_the_mantel_haenszel_odds_ratio():
    found = compare_groups(matrix(1 + (GRADES > 1), num_grades=2), IS_FIRST)
    assert found.odds_ratio.estimate == pytest.approx(GOLDEN["odds_ratio_above_poor"], abs=1e-9)


def test_the_odds_ratio_is_that_of_a_proportional_odds_model():
    """Another estimate of the same parameter than statsmodels' maximum likelihood: near, not equal."""
    found = compare_groups(matrix(GRADES), IS_FIRST)
    assert log(found.odds_ratio.estimate) == pytest.approx(GOLDEN["log_odds_ratio"], abs=0.05)
    assert found.odds_ratio.low < found.odds_ratio.estimate < found.odds_ratio.high


def test_superiority_counts_pairs_within_each_reader():
    grades = np.where(np.random.default_rng(0).random(GRADES.shape) < 0.3, 0, GRADES)
    found = compare_groups(matrix(grades), IS_FIRST)
    wins, weights = [], []
    for column, part in zip(grades.T, found.readers, strict=True):
        first, second = column[IS_FIRST & (column > 0)], column[~IS_FIRST & (column > 0)]
        wins.append(np.mean([(a > b) + (a == b) / 2 for a, b in itertools.product(first, second)]))
        weights.append(len(first) * len(second) / (len(first) + len(second) + 1))
        assert part.superiority == pytest.approx(wins[-1])
        assert (part.n_first, part.n_second) == (len(first), len(second))
    assert found.superiority.estimate == pytest.approx(np.average(wins, weights=weights))
    assert found.first.histogram == tuple((grades[IS_FIRST] == grade).sum() for grade in (1, 2, 3))


def test_the_other_way_round_is_the_mirror_image():
    one, other = compare_groups(matrix(GRADES), IS_FIRST), compare_groups(matrix(GRADES), ~IS_FIRST)
    assert one.superiority.estimate + other.superiority.estimate == pytest.approx(1)
    assert one.odds_ratio.estimate * other.odds_ratio.estimate == pytest.approx(1)
    assert one.p_value == pytest.approx(other.p_value)
    assert one.first.histogram == other.second.histogram


def test_readers_who_copy_each_other_are_not_more_evidence():
    """Five columns that say the same: van Elteren's own variance would take them for five times the images."""
    alone = compare_groups(matrix(GRADES[:, :1]), IS_FIRST)
    copied = compare_groups(matrix(np.repeat(GRADES[:, :1], 5, axis=1)), IS_FIRST)
    assert copied.p_value == pytest.approx(alone.p_value)
    assert copied.superiority.estimate == pytest.approx(alone.superiority.estimate)
    width = alone.superiority.high - alone.superiority.low
    assert copied.superiority.high - copied.superiority.low == pytest.approx(width, rel=0.05)


def test_few_images_are_permuted_and_agree_with_every_permutation():
    """5 against 4 images: all 126 ways to choose the first group."""
    grades = np.array([[3, 3], [3, 2], [2, 3], [3, 0], [2, 2], [1, 2], [2, 1], [1, 1], [0, 2]])
    is_first = np.arange(9) < 5

    def rank_sum(chosen: set) -> float:
        total = 0.0
        for column in grades.T:
            given = column[column > 0]
            for image in chosen:
                if column[image]:
                    rank = (given < column[image]).sum() + ((given == column[image]).sum() + 1) / 2
                    total += rank / (len(given) + 1) - 0.5
        return total

    observed = abs(rank_sum(set(range(5))))
    every = [abs(rank_sum(set(chosen))) >= observed - 1e-9 for chosen in itertools.combinations(range(9), 5)]
    found = compare_groups(matrix(grades), is_first)
    assert found.p_value == pytest.approx(np.mean(every), abs=0.01)


def test_permutations_and_the_normal_distribution_agree(monkeypatch):
    by_normal = compare_groups(matrix(GRADES), IS_FIRST).p_value
    monkeypatch.setattr("ratings.agreement.comparison._FEW_IMAGES", 1000)
    assert compare_groups(matrix(GRADES), IS_FIRST).p_value == pytest.approx(by_normal, abs=0.004)


def test_the_test_keeps_its_level_though_readers_see_the_same_images():
    """No difference between the groups, readers who agree strongly: 5 % of p-values are below 0.05."""
    rng = np.random.default_rng(4)
    few = Bootstrap(num_resamples=1)
    p_values = []
    for _ in range(400):
        latent = rng.choice(3, 80)[:, None]
        step = np.where(rng.random((80, 4)) < 0.85, 0, rng.choice([-1, 1], (80, 4)))
        grades = np.clip(latent + step, 0, 2) + 1
        p_values.append(compare_groups(matrix(grades), np.arange(80) < 40, bootstrap=few).p_value)
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.08


@pytest.mark.slow
def test_intervals_hold_the_truth_for_other_readers_only_when_readers_are_resampled():
    """Readers differ in how much they prefer the first group; the truth is the average over very many of them."""

    def study(seed: int, num_images: int, num_readers: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        latent = rng.normal(size=(2 * num_images, 1))
        preference = rng.normal(0.5, 0.8, num_readers)
        seen = latent + np.where(np.arange(2 * num_images)[:, None] < num_images, preference, 0)
        return 1 + (seen + rng.normal(0, 0.5, seen.shape) > [[[-0.5]], [[0.5]]]).sum(0)

    def superiority(grades: np.ndarray, **options):
        return compare_groups(matrix(grades), np.arange(len(grades)) < len(grades) // 2, **options).superiority

    truth = superiority(study(1, 400, 2000), random_readers=False, bootstrap=Bootstrap(num_resamples=1)).estimate
    covered = {True: 0, False: 0}
    for seed in range(100, 200):
        grades = study(seed, 100, 8)
        for random_readers in covered:
            found = superiority(grades, random_readers=random_readers, bootstrap=Bootstrap(num_resamples=300))
            covered[random_readers] += found.low <= truth <= found.high
    assert covered[True] >= 86 and covered[False] <= 80


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("grades", "is_first", "words"),
    [
        (np.zeros((0, 0)), [], "No image of the first group"),
        ([[1], [2]], [True, True], "No image of the second group"),
        ([[1], [0]], [True, False], "No image of the second group"),
        ([[1, 0], [2, 0], [0, 1], [0, 3]], [True, True, False, False], "No reader has rated images of both"),
        ([[1], [2], [3]], [True, True, False], "single image"),
    ],
)
def test_groups_that_cannot_be_compared(grades, is_first, words):
    found = compare_groups(matrix(grades), np.array(is_first, dtype=bool))
    assert found.p_value is None and found.superiority.estimate is None and found.readers == ()
    assert words in found.reason == found.superiority.reason


@pytest.mark.filterwarnings("error")
def test_one_grade_everywhere_is_no_difference_and_no_odds():
    found = compare_groups(matrix(np.full((10, 2), 3)), np.arange(10) < 5)
    assert found.superiority.estimate == 0.5 and found.superiority.low is None and found.p_value == 1.0
    assert found.odds_ratio.estimate is None and found.odds_ratio.reason


def test_shares_of_single_ratings_are_wilsons_and_of_many_readers_wider():
    alone = compare_groups(matrix(GRADES[:, :1]), IS_FIRST)
    number = int((GRADES[IS_FIRST, 0] == 1).sum())
    assert alone.first.shares[0] == share_estimate(number, 45, n_ratings=45, undefined="")
    four = compare_groups(matrix(GRADES), IS_FIRST)
    poor = four.first.shares[0]
    assert poor.estimate == (GRADES[IS_FIRST] == 1).mean() and poor.n_ratings == 180
    as_if_independent = share_estimate(int((GRADES[IS_FIRST] == 1).sum()), 180, n_ratings=180, undefined="")
    assert poor.high - poor.low > as_if_independent.high - as_if_independent.low


def test_shares_speak_of_other_readers_when_readers_are_resampled():
    """One reader of four gives poor to everything: with other readers the share may be 0 or 3 in 4."""
    grades = np.tile([1, 3, 3, 3], (20, 1))
    these = compare_groups(matrix(grades), np.arange(20) < 10, random_readers=False).first.shares[0]
    others = compare_groups(matrix(grades), np.arange(20) < 10).first.shares[0]
    assert these.estimate == others.estimate == 0.25 and these.low is None
    assert (others.low, others.high) == (0, 0.75) and "readers" in others.method


def test_the_wrong_number_of_truth_values():
    with pytest.raises(ValueError, match="one truth value for each of 105"):
        compare_groups(matrix(GRADES), IS_FIRST[:-1])


# --- real against synthetic ---


def calls_of(
    real_called_real: float, synthetic_called_real: float, *, seed: int = 0
) -> tuple[RatingTable, np.ndarray]:
    rng = np.random.default_rng(seed)
    is_real = np.arange(120) < 40
    chance = np.where(is_real, real_called_real, synthetic_called_real)[:, None]
    calls = np.where(rng.random((120, 3)) < chance, CALLED_REAL, CALLED_SYNTHETIC)
    return matrix(calls, num_grades=2), is_real


def test_calls_by_kind_of_image_and_balanced_accuracy():
    calls, is_real = calls_of(0.8, 0.3)
    found = discrimination(calls, is_real)
    real, synthetic = (calls.grades[side] == CALLED_REAL for side in (is_real, ~is_real))
    assert found.real_called_real.estimate == real.mean()
    assert found.synthetic_called_real.estimate == synthetic.mean()
    assert found.accuracy.estimate == pytest.approx((real.mean() + 1 - synthetic.mean()) / 2)
    assert found.p_value < 1e-6 and found.accuracy.low > 0.5
    for number, each in enumerate(found.readers):
        assert each.real_called_real == share_estimate(int(real[:, number].sum()), 40, n_ratings=40, undefined="")
        assert each.synthetic_called_real.estimate == synthetic[:, number].mean()


def test_readers_who_guess():
    found = discrimination(*calls_of(0.5, 0.5, seed=1))
    assert found.accuracy.low < 0.5 < found.accuracy.high and found.p_value > 0.05


def test_only_synthetic_images_still_give_the_share_taken_for_real():
    calls, is_real = calls_of(0.8, 0.3)
    found = discrimination(calls, np.zeros_like(is_real))
    assert found.accuracy.estimate is None and found.reason
    assert found.real_called_real.reason == "No real image was called."
    assert found.synthetic_called_real.estimate == (calls.grades == CALLED_REAL).mean()
    assert found.readers[0].real_called_real.reason == "This reader has called no real image."


def test_grades_are_not_calls():
    with pytest.raises(ValueError, match="3 grades"):
        discrimination(matrix(GRADES), IS_FIRST)
