"""Distances and neighbourhoods against double loops, closed forms and point sets made by hand."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from training.evaluation.distances import (
    GaussianKernel,
    frechet_distance,
    gaussian_frechet,
    inception_score,
    polynomial_kernel,
    squared_mmd,
    squared_mmd_interval,
)
from training.evaluation.neighbours import neighbourhoods


def loop_mmd(x, y, kernel):
    """The estimator of Gretton et al. (2012), equation 3, term by term."""
    within_x = [kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]
    within_y = [kernel(y[i], y[j]) for i in range(len(y)) for j in range(len(y)) if i != j]
    across = [kernel(a, b) for a in x for b in y]
    return sum(within_x) / len(within_x) + sum(within_y) / len(within_y) - 2 * sum(across) / len(across)


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def test_kid_is_the_double_loop(rng):
    x, y = rng.normal(size=(5, 3)), rng.normal(0.5, 1, size=(7, 3))
    expected = loop_mmd(x, y, lambda a, b: (sum(p * q for p, q in zip(a, b, strict=True)) / 3 + 1) ** 3)
    assert squared_mmd(x, y, polynomial_kernel) == pytest.approx(expected)


def test_gaussian_mmd_is_the_double_loop(rng):
    x, y = rng.normal(size=(5, 3)), rng.normal(0.5, 1, size=(7, 3))
    kernel = GaussianKernel.of_median(y)
    distances = sorted(np.sqrt(((y[i] - y[j]) ** 2).sum()) for i in range(7) for j in range(i))
    assert kernel.bandwidth == pytest.approx(distances[10])  # the middle one of 21 pairs
    expected = loop_mmd(x, y, lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * distances[10] ** 2)))
    assert squared_mmd(x, y, kernel) == pytest.approx(expected)


@pytest.mark.parametrize("kernel", [polynomial_kernel, GaussianKernel(2.0)], ids=["KID", "MMD"])
def test_it_is_zero_in_expectation_for_equal_and_positive_for_other_distributions(kernel, rng):
    equal = [squared_mmd(rng.normal(size=(20, 4)), rng.normal(size=(15, 4)), kernel) for _ in range(400)]
    other = [squared_mmd(rng.normal(size=(20, 4)), rng.normal(1, 1, size=(15, 4)), kernel) for _ in range(100)]
    standard_error = np.std(equal) / 20
    assert abs(np.mean(equal)) < 4 * standard_error
    assert min(equal) < 0, "an unbiased estimate falls below zero too"
    assert np.mean(other) > 50 * standard_error


def test_the_jackknife_interval_covers_the_truth(rng):
    """For Gaussians of deviation 1 and the Gaussian kernel MMD^2 has a closed form."""
    bandwidth, shift, dimension = 1.5, 1.0, 2
    scale = (bandwidth**2 / (bandwidth**2 + 2)) ** (dimension / 2)
    truth = 2 * scale * (1 - np.exp(-(shift**2) / (2 * (bandwidth**2 + 2))))
    covered = 0
    for _ in range(100):
        x, y = rng.normal(size=(40, dimension)), rng.normal(size=(50, dimension))
        y[:, 0] += shift
        found = squared_mmd_interval(x, y, GaussianKernel(bandwidth), np.arange(40), np.arange(50))
        assert found.value == pytest.approx(squared_mmd(x, y, GaussianKernel(bandwidth)))
        covered += found.low <= truth <= found.high
    assert covered >= 88


def test_leaving_out_a_group_leaves_out_all_its_images(rng):
    """The jackknife's variance against one that computes every leave-out from nothing."""
    x, y = rng.normal(size=(9, 2)), rng.normal(size=(8, 2))
    groups_x, groups_y = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3]), np.arange(8)
    variance = 0.0
    for own, other, groups in ((x, y, groups_x), (y, x, groups_y)):
        left = [squared_mmd(own[groups != group], other, polynomial_kernel) for group in np.unique(groups)]
        variance += (len(left) - 1) * np.var(left)
    found = squared_mmd_interval(x, y, polynomial_kernel, groups_x, groups_y)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-5)


def test_frechet_of_known_gaussians():
    # Commuting covariances: |m|^2 + sum (s_x - s_y)^2.
    assert gaussian_frechet([0, 0], np.diag([4.0, 9.0]), [3, 4], np.diag([1.0, 25.0])) == pytest.approx(25 + 1 + 4)
    assert gaussian_frechet([1, 2], np.eye(2), [1, 2], np.eye(2)) == pytest.approx(0, abs=1e-9)
    assert gaussian_frechet([0], np.array([[4.0]]), [0], np.array([[9.0]])) == pytest.approx(1)


@pytest.mark.parametrize("counts", [(40, 50), (5, 4)], ids=["more images than features", "fewer"])
def test_frechet_of_features_is_the_matrix_root(counts, rng):
    x, y = rng.normal(size=(counts[0], 6)), rng.normal(0.3, 2, size=(counts[1], 6)) @ rng.normal(size=(6, 6))
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    root = sqrtm(cov_x @ cov_y)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * np.real(root))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-4)


def test_inception_score_runs_from_one_to_the_number_of_classes(rng):
    sure_and_even = np.eye(7)[np.arange(70) % 7]
    assert inception_score(sure_and_even) == pytest.approx(7)
    assert inception_score(np.full((10, 7), 1 / 7)) == pytest.approx(1)
    assert inception_score(np.eye(7)[np.zeros(10, dtype=int)]) == pytest.approx(1), "sure, but always the same"
    mixed = rng.dirichlet(np.ones(7), 200)
    marginal = mixed.mean(0)
    expected = np.exp(np.mean([sum(p * np.log(p / q) for p, q in zip(row, marginal, strict=True)) for row in mixed]))
    assert inception_score(mixed) == pytest.approx(expected)
    with pytest.raises(ValueError, match="not logits"):
        inception_score(rng.normal(size=(4, 7)))


# --- density, coverage, precision, recall ---


def test_neighbourhoods_of_points_on_a_line():
    real = np.array([[0.0], [1.0], [3.0], [10.0]])  # balls to the nearest other: 1, 1, 2, 7
    generated = np.array([[0.5], [0.6], [20.0]])
    found = neighbourhoods(real, generated, k=1)
    # 0.5 and 0.6 lie in the balls of 0 and 1 only; 20 in none.
    assert found.density == pytest.approx(4 / 3)
    assert found.coverage == pytest.approx(2 / 4)
    assert found.precision == pytest.approx(2 / 3)
    # Generated balls: 0.5 and 0.6 reach 0.1, 20 reaches 19.4: 1.0, 3.0 and 10.0 lie inside that one.
    assert found.recall == pytest.approx(3 / 4)


def test_a_copy_is_covered_and_a_far_cloud_is_not(rng):
    real = rng.normal(size=(50, 3))
    copy, far = neighbourhoods(real, real, k=3), neighbourhoods(real, real + 100, k=3)
    assert (copy.coverage, copy.precision, copy.recall) == (1, 1, 1)
    assert (far.density, far.coverage, far.precision, far.recall) == (0, 0, 0, 0)


def test_equal_distributions_have_the_expectations_of_the_paper(rng):
    """E[density] = 1, E[coverage] = 1 - (n-1)...(n-k) / ((2n-1)...(2n-k)) for n images each (Naeem et al., 2020)."""
    n, k = 40, 3
    found = [neighbourhoods(rng.normal(size=(n, 2)), rng.normal(size=(n, 2)), k) for _ in range(200)]
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert np.mean([each.density for each in found]) == pytest.approx(1, abs=0.04)
    assert np.mean([each.coverage for each in found]) == pytest.approx(expected, abs=0.02)


def test_too_few_neighbours_are_refused():
    with pytest.raises(ValueError, match="k = 5 neighbours need more than 5 images"):
        neighbourhoods(np.zeros((5, 2)), np.zeros((50, 2)), 5)
