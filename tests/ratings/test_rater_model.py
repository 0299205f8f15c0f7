"""The MAP Dawid-Skene model: Bayes by hand, simulated raters of known accuracy, gold images."""

import numpy as np
import pytest

from ratings.agreement.rater_model import (
    MIN_OVERLAP,
    PRIOR_ACCURACY,
    fit_rater_model,
    fit_table,
    prior_confusion,
    usual_levels,
)
from ratings.agreement.table import RatingTable


def test_one_rating_is_judged_by_the_priors_alone():
    """Bayes by hand: prevalence from EM, P(rating | truth) from the level's prior."""
    model = fit_rater_model(np.array([0]), np.array([0]), np.array([3]), np.array([PRIOR_ACCURACY[3]]), num_images=1)
    likelihood = np.array([0.045, 0.075, 0.85])  # says excellent of what is poor, acceptable, excellent
    by_hand = model.prevalence * likelihood / (model.prevalence * likelihood).sum()
    assert model.posterior[0] == pytest.approx(by_hand, abs=1e-3)
    assert model.overlap.tolist() == [0]


def test_the_prior_is_twenty_ratings_that_are_right_by_level():
    counts = prior_confusion(0.7)
    assert counts.sum(1) == pytest.approx([20, 20, 20])
    assert np.diag(counts) / 20 == pytest.approx([0.7, 0.7, 0.7])


def test_a_rating_further_up_speaks_more_against_poor():
    """Errors are mostly of one grade: one rating of each grade leaves poor less and less likely, at any level."""
    for level, accuracy in PRIOR_ACCURACY.items():
        counts = prior_confusion(accuracy)
        assert counts[[0, 2], 1] == pytest.approx(7 / 3 * counts[[0, 2], [2, 0]])
        assert counts[1, 0] == counts[1, 2]
        model = fit_rater_model(
            np.arange(3), np.zeros(3, int), np.array([1, 2, 3]), np.array([accuracy]), num_images=3
        )
        assert (np.diff(model.posterior[:, 0]) < 0).all(), level
        assert (np.diff(model.posterior[:, 2]) > 0).all(), level


def test_an_image_prior_stands_in_for_the_prevalence():
    """Bayes by hand, image by image; known grades stay known."""
    truth, images, raters, grades = simulate(50, {0: 0.8, 1: 0.6})
    prior = np.random.default_rng(2).dirichlet([2, 3, 1], 50)
    known = np.where(np.arange(50) % 10 == 0, truth, 0)
    model = fit_rater_model(
        images, raters, grades, np.array([0.85, 0.55]), num_images=50, known=known, image_prior=prior
    )
    for image in range(50):
        by_hand = prior[image].copy()
        for rater, grade in zip(raters[images == image], grades[images == image], strict=True):
            by_hand *= model.confusion[rater][:, grade - 1]
        expected = np.eye(3)[truth[image] - 1] if known[image] else by_hand / by_hand.sum()
        assert model.posterior[image] == pytest.approx(expected, abs=1e-6)
    by_prevalence = fit_rater_model(images, raters, grades, np.array([0.85, 0.55]), num_images=50, known=known)
    same = fit_rater_model(
        images,
        raters,
        grades,
        np.array([0.85, 0.55]),
        num_images=50,
        known=known,
        image_prior=np.tile(by_prevalence.prevalence, (50, 1)),
    )
    assert same.posterior == pytest.approx(by_prevalence.posterior, abs=1e-4)
    assert not np.allclose(model.posterior, same.posterior, atol=1e-2)


def simulate(num_images: int, accuracies: dict[int, float], seed: int = 0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 4, num_images)
    images, raters, grades = [], [], []
    for rater, accuracy in accuracies.items():
        for image in range(num_images):
            wrong = 1 + (truth[image] + rng.integers(0, 2)) % 3
            images.append(image)
            raters.append(rater)
            grades.append(truth[image] if rng.random() < accuracy else wrong)
    return truth, np.array(images), np.array(raters), np.array(grades)


def test_a_rater_who_contradicts_the_others_is_found_out_whatever_his_level():
    accuracies = {0: 0.9, 1: 0.9, 2: 0.34}
    truth, images, raters, grades = simulate(200, accuracies)
    level_prior = np.array([PRIOR_ACCURACY[1], PRIOR_ACCURACY[1], PRIOR_ACCURACY[3]])
    model = fit_rater_model(images, raters, grades, level_prior, num_images=200)
    estimated = model.confusion[:, range(3), range(3)].mean(1)
    assert estimated == pytest.approx([0.88, 0.88, 0.42], abs=0.1)
    votes = np.stack([(grades.reshape(3, 200) == grade).sum(0) for grade in (1, 2, 3)], 1)
    majority = (votes.argmax(1) + 1 == truth).mean()
    assert (model.posterior.argmax(1) + 1 == truth).mean() >= majority
    assert model.posterior.sum(1) == pytest.approx(np.ones(200))


def test_a_rater_with_little_overlap_keeps_the_prior():
    _, images, raters, grades = simulate(MIN_OVERLAP - 1, {0: 0.2, 1: 0.9})
    model = fit_rater_model(images, raters, grades, np.array([0.85, 0.55]), num_images=MIN_OVERLAP - 1)
    assert model.confusion[0] == pytest.approx(prior_confusion(0.85) / 20)
    assert model.confusion[1] == pytest.approx(prior_confusion(0.55) / 20)


def test_gold_images_are_known_and_tell_a_lone_rater_apart():
    """Without gold a lone rater keeps the prior; with it, his confusion matrix is that of the gold images."""
    truth, images, raters, grades = simulate(300, {0: 0.5})
    prior = np.array([PRIOR_ACCURACY[3]])
    alone = fit_rater_model(images, raters, grades, prior, num_images=300)
    known = np.where(np.arange(300) < 200, truth, 0)
    model = fit_rater_model(images, raters, grades, prior, num_images=300, known=known)
    assert alone.overlap.tolist() == [0] and model.overlap.tolist() == [200]
    assert (model.posterior[:200].argmax(1) + 1 == truth[:200]).all() and (model.posterior[:200].max(1) == 1).all()
    right = np.diag(model.confusion[0]).mean()
    on_gold = (grades[:200] == truth[:200]).mean()
    assert abs(right - on_gold) < 0.1 < abs(np.diag(alone.confusion[0]).mean() - on_gold)


def test_gold_equals_a_rater_who_is_always_right():
    truth, images, raters, grades = simulate(120, {0: 0.8, 1: 0.6})
    prior = np.array([0.7, 0.7])
    model = fit_rater_model(images, raters, grades, prior, num_images=120, known=truth)
    images, raters, grades = (np.r_[a, b] for a, b in ((images, range(120)), (raters, [2] * 120), (grades, truth)))
    sure = fit_rater_model(images, raters, grades, np.r_[prior, 1 - 1e-12], num_images=120)
    assert model.confusion == pytest.approx(sure.confusion[:2], abs=1e-6)
    assert model.posterior == pytest.approx(sure.posterior, abs=1e-6)


def test_a_table_gives_the_same_model_as_its_single_ratings():
    truth, images, raters, grades = simulate(60, {0: 0.9, 1: 0.6, 2: 0.5})
    is_given = np.random.default_rng(1).random(len(grades)) < 0.7
    images, raters, grades = images[is_given], raters[is_given], grades[is_given]
    known = np.where(np.arange(60) < 5, truth, 0)
    matrix = np.zeros((60, 3))
    matrix[images, raters] = grades
    by_table = fit_table(RatingTable.from_matrix(matrix), [3, 2, 1], truth=known)
    accuracies = np.array([PRIOR_ACCURACY[level] for level in (3, 2, 1)])
    by_rating = fit_rater_model(images, raters, grades, accuracies, num_images=60, known=known)
    assert by_table.posterior == pytest.approx(by_rating.posterior)
    assert by_table.confusion == pytest.approx(by_rating.confusion)
    with pytest.raises(ValueError, match="one level per reader"):
        fit_table(RatingTable.from_matrix(matrix), [3, 2])


def test_without_ratings_every_grade_is_as_likely():
    model = fit_table(RatingTable.from_matrix(np.zeros((4, 2))), [1, 3])
    assert model.posterior == pytest.approx(np.full((4, 3), 1 / 3))
    assert model.overlap.tolist() == [0, 0]


def test_the_usual_level_is_that_of_most_ratings_and_of_two_alike_the_lower():
    assert usual_levels(np.array([[0, 0, 9], [4, 5, 0], [3, 3, 0], [0, 2, 2], [7, 1, 2]])).tolist() == [3, 2, 1, 2, 1]


def by_hand(images, raters, grades, accuracies, num_images, known, num_iterations=40):
    """The same EM written with loops over single ratings: slow, and nothing shared with the module."""
    share = [[None, 0.7, 0.3], [0.5, None, 0.5], [0.3, 0.7, None]]  # of the errors about each grade
    prior = 20 * np.array(
        [[[a if t == g else (1 - a) * share[t][g] for g in range(3)] for t in range(3)] for a in accuracies]
    )
    rated_by = [{r for i, r in zip(images, raters, strict=True) if i == image} for image in range(num_images)]
    overlap = [
        sum(known[image] > 0 or len(rated_by[image]) > 1 for image in range(num_images) if rater in rated_by[image])
        for rater in range(len(accuracies))
    ]
    confusion, prevalence = prior / 20, np.full(3, 1 / 3)

    def posterior():
        found = np.tile(prevalence, (num_images, 1))
        for image, rater, grade in zip(images, raters, grades, strict=True):
            found[image] *= confusion[rater][:, grade - 1]
        found /= found.sum(1, keepdims=True)
        for image in np.flatnonzero(known):
            found[image] = np.arange(1, 4) == known[image]
        return found

    now = posterior()
    for _ in range(num_iterations):
        counts = prior.copy()
        for image, rater, grade in zip(images, raters, grades, strict=True):
            if overlap[rater] >= MIN_OVERLAP:
                counts[rater][:, grade - 1] += now[image]
        confusion = counts / counts.sum(2, keepdims=True)
        prevalence = (now.sum(0) + 1) / (now.sum() + 3)
        now = posterior()
    return now, confusion


def test_the_fast_sums_are_those_of_single_ratings():
    truth, images, raters, grades = simulate(40, {0: 0.9, 1: 0.6, 2: 0.5})
    kept = (raters < 2) | (images < 6)  # the third keeps the prior
    images, raters, grades = images[kept], raters[kept], grades[kept]
    known = np.where(np.arange(40) % 8 == 0, truth, 0)
    accuracies = np.array([0.85, 0.7, 0.55])
    model = fit_rater_model(images, raters, grades, accuracies, num_images=40, known=known)
    posterior, confusion = by_hand(images, raters, grades, accuracies, 40, known)
    assert model.posterior == pytest.approx(posterior, abs=1e-10)
    assert model.confusion == pytest.approx(confusion, abs=1e-10)
