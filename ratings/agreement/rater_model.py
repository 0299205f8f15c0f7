"""From many raters to one soft label per image: Dawid-Skene with a prior by expertise. numpy only.

Dawid & Skene (1979) by expectation-maximisation, with a Dirichlet prior on every row of a rater's confusion matrix
that says what his level of expertise usually sees. Plain Dawid-Skene is unidentifiable with one rating an image;
with the prior it falls back to "trust by level". Grades are ordered, and so are the errors that the prior expects:
who takes a poor image for better mostly says acceptable. So a rating of 3 speaks against poor more than one of 2.

What else is known of an image may stand in for the prevalence of the grades: an ``image_prior`` (Raykar et al. 2010,
JMLR 11:1297).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ratings.agreement.table import NUM_GRADES, RatingTable

PRIOR_ACCURACY = {1: 0.55, 2: 0.70, 3: 0.85}  # share of gradings that are right, by expertise level
NUM_LEVELS = len(PRIOR_ACCURACY)
EQUAL_ACCURACY = 0.70  # of every rater where expertise shall not count
FAR_SHARE = 0.3  # of the errors about a poor or excellent image, that miss by two grades
PRIOR_COUNTS = 20.0  # ratings that the prior is worth, in each row of a confusion matrix
MIN_OVERLAP = 10  # images shared with another rating; with fewer a rater keeps the prior
_PREVALENCE_COUNTS = 1.0  # keeps a grade that nobody gave possible


@dataclass(frozen=True)
class RaterModel:
    posterior: np.ndarray  # (N, 3) probability of each grade per image
    confusion: np.ndarray  # (J, 3, 3) P(rater says column | truth is row)
    prevalence: np.ndarray  # (3,) share of each grade, by the posterior
    overlap: np.ndarray  # (J,) images each rater shares with another rating or a known grade


def prior_confusion(accuracy: float) -> np.ndarray:
    """(3, 3) Dirichlet counts of a prior: right with ``accuracy``, and wrong by one grade rather than by two."""
    wrong = 1 - accuracy
    near, far = wrong * (1 - FAR_SHARE), wrong * FAR_SHARE
    return PRIOR_COUNTS * np.array([[accuracy, near, far], [wrong / 2, accuracy, wrong / 2], [far, near, accuracy]])


def fit_rater_model(
    images: np.ndarray,
    raters: np.ndarray,
    grades: np.ndarray,
    accuracies: np.ndarray,
    *,
    num_images: int,
    known: np.ndarray | None = None,
    image_prior: np.ndarray | None = None,
    num_iterations: int = 40,
) -> RaterModel:
    """Posterior grades by maximum a posteriori EM.

    ``images``, ``raters``: (R,) indices of each rating; ``grades``: (R,) 1 to 3; ``accuracies``: (J,) the prior
    accuracy of each rater. ``known`` (N,): the grade of gold images, 0 elsewhere; they enter as if one more rater,
    who is always right, had rated them. ``image_prior`` (N, 3): how likely each grade of an image is without its own
    ratings, instead of the grades' prevalence. Every rating counts exactly once; none is dropped or altered.
    """
    known = np.zeros(num_images, dtype=int) if known is None else known
    prior = np.stack([prior_confusion(accuracy) for accuracy in accuracies])
    overlap = _overlap(images, raters, len(accuracies), known > 0)
    is_learnt = (overlap >= MIN_OVERLAP)[:, None, None]
    confusion = prior / prior.sum(2, keepdims=True)
    prevalence = np.full(NUM_GRADES, 1 / NUM_GRADES)
    before = prevalence if image_prior is None else image_prior
    posterior = _posterior(images, raters, grades, confusion, before, known)
    for _ in range(num_iterations):
        counts = _counts(images, raters, grades, posterior, len(prior))
        estimate = prior + counts * is_learnt
        confusion = estimate / estimate.sum(2, keepdims=True)
        shares = posterior.sum(0) + _PREVALENCE_COUNTS
        prevalence = shares / shares.sum()
        before = prevalence if image_prior is None else image_prior
        posterior = _posterior(images, raters, grades, confusion, before, known)
    return RaterModel(posterior, confusion, prevalence, overlap)


def usual_levels(ratings_by_level: np.ndarray) -> np.ndarray:
    """(J,) the level, 1 to 3, under which each rater gave most ratings; the lower one of two with as many.

    ``ratings_by_level`` (J, 3): ratings given under each level. A rater whose level changed is still one pair of eyes
    with one confusion matrix; the level sets its prior only, which the ratings outweigh.
    """
    return ratings_by_level.argmax(1) + 1


def fit_table(table: RatingTable, levels: Sequence[int], *, truth: np.ndarray | None = None) -> RaterModel:
    """The model of a study's table: rows as the table's images, raters as its readers.

    ``levels`` (J,): expertise, 1 to 3; ``truth`` (N,): known grades of gold images, 0 elsewhere.
    """
    if table.num_grades != NUM_GRADES or len(levels) != len(table.readers):
        raise ValueError(
            f"The rater model is of {NUM_GRADES} grades and one level per reader; the table has {table.num_grades} "
            f"grades and {len(table.readers)} readers, and {len(levels)} levels were given."
        )
    images, raters = np.nonzero(table.grades)
    accuracies = np.array([PRIOR_ACCURACY[level] for level in levels], dtype=float)
    grades = table.grades[images, raters].astype(int)
    return fit_rater_model(images, raters, grades, accuracies, num_images=len(table.images), known=truth)


def _counts(
    images: np.ndarray, raters: np.ndarray, grades: np.ndarray, posterior: np.ndarray, num_raters: int
) -> np.ndarray:
    """(J, 3, 3) how often each rater is expected to have said column where the truth was row."""
    said = raters * NUM_GRADES + grades - 1
    cells = num_raters * NUM_GRADES
    by_truth = [np.bincount(said, weights=posterior[images, truth], minlength=cells) for truth in range(NUM_GRADES)]
    return np.stack(by_truth).reshape(NUM_GRADES, num_raters, NUM_GRADES).swapaxes(0, 1)


def _posterior(
    images: np.ndarray,
    raters: np.ndarray,
    grades: np.ndarray,
    confusion: np.ndarray,
    before: np.ndarray,
    known: np.ndarray,
) -> np.ndarray:
    """P(grade | ratings), (N, 3): what was likely ``before``, (3,) or (N, 3), times the product over ratings of
    P(rating | grade); 1 where known."""
    said = np.log(confusion)[raters, :, grades - 1]  # (R, 3)
    sums = [np.bincount(images, weights=column, minlength=len(known)) for column in said.T]
    evidence = np.log(before) + np.stack(sums, axis=1)
    evidence -= evidence.max(1, keepdims=True)
    likelihood = np.exp(evidence)
    posterior = likelihood / likelihood.sum(1, keepdims=True)
    is_known = known > 0
    posterior[is_known] = np.eye(NUM_GRADES)[known[is_known] - 1]
    return posterior


def _overlap(images: np.ndarray, raters: np.ndarray, num_raters: int, is_known: np.ndarray) -> np.ndarray:
    """(J,) how many images each rater has rated that have a further rating or a known grade."""
    ratings_per_image = np.bincount(images, minlength=len(is_known))
    shared = (ratings_per_image[images] > 1) | is_known[images]
    pairs = np.unique(np.stack([raters[shared], images[shared]]), axis=1)
    return np.bincount(pairs[0].astype(int), minlength=num_raters)
