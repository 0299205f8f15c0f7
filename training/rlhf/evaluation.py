"""What selector and policy are worth on images they were not trained on. numpy only.

Labels are single ratings as given: the soft label is the model's own teacher and would flatter it. The human ceiling
is how well one rater's grade predicts another's "poor" on the same images: no score can be asked for much more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NUM_BOOTSTRAPS = 200
INTERVAL = 0.95
ECE_BINS = 10


@dataclass(frozen=True)
class Estimate:
    value: float | None  # None where the ratings cannot tell (a single class, no repeated ratings)
    low: float | None  # ends of the bootstrap interval over images
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """Probability that a positive scores above a negative, ties counted half; None without both classes.

    ``weights``: how many times each score counts.
    """
    labels = labels.astype(bool)
    if labels.all() or not labels.any():
        return None
    weights = np.ones(len(scores)) if weights is None else weights
    levels, level = np.unique(scores, return_inverse=True)
    positive = np.bincount(level, weights * labels, minlength=len(levels))
    negative = np.bincount(level, weights * ~labels, minlength=len(levels))
    below = np.cumsum(negative) - negative
    return float(positive @ (below + negative / 2) / (positive.sum() * negative.sum()))


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean((probabilities - labels) ** 2))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean gap between stated and observed frequency over bins of equal size."""
    order = np.argsort(probabilities, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [abs(probabilities[part].mean() - labels[part].mean()) * len(part) for part in parts]
    return float(sum(gaps) / len(order))


def bootstrap(
    statistic: Callable[[np.ndarray], float | None],
    num_images: int,
    *,
    seed: int,
    repeats: int = NUM_BOOTSTRAPS,
    centred: bool = False,
) -> Estimate:
    """``statistic`` of positions of images (with repetition), on all of them and on bootstrap samples.

    ``centred``: for a statistic >= 0 that resampling raises, as it does every mean of absolute gaps. The samples'
    interval is moved down by that excess; else it could lie above the value itself.
    """
    generator = np.random.default_rng(seed)
    value = statistic(np.arange(num_images))
    drawn = [statistic(generator.integers(0, num_images, num_images)) for _ in range(repeats)]
    drawn = [each for each in drawn if each is not None]
    if value is None or len(drawn) < repeats // 2:
        return Estimate(value, None, None)
    low, high = np.quantile(drawn, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    if centred:
        excess = np.mean(drawn) - value
        low, high = max(low - excess, 0), high - excess
    return Estimate(value, float(low), float(high))


def gather_ratings(item_of_rating: np.ndarray, grades: np.ndarray, items: np.ndarray) -> list[np.ndarray]:
    """The grades of each of ``items``, one array per item."""
    return [grades[item_of_rating == item] for item in items]


def evaluate_scores(good: np.ndarray, grades: list[np.ndarray], *, seed: int) -> dict[str, dict]:
    """AUC(poor), Brier and ECE of P(good) (n,) against every single rating, bootstrapped over images."""

    def flat(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        poor = np.concatenate([grades[image] == 1 for image in images])
        return np.repeat(1 - good[images], [len(grades[image]) for image in images]), poor

    measures = {"auc_poor": auc, "brier": brier, "ece": expected_calibration_error}
    return {
        name: bootstrap(
            lambda images, measure=measure: measure(*flat(images)), len(good), seed=seed, centred=name == "ece"
        ).to_dict()
        for name, measure in measures.items()
    }


def human_ceiling(grades: list[np.ndarray], *, seed: int) -> dict[str, float | int | None]:
    """AUC with which one rating predicts whether another of the same image says poor; over all ordered pairs."""
    pairs = [_ordered_pairs(given) for given in grades if len(given) > 1]
    if not pairs:
        return {**Estimate(None, None, None).to_dict(), "images": 0}

    def statistic(images: np.ndarray) -> float | None:
        scores, labels, weights = np.concatenate([pairs[image] for image in images], axis=1)
        return auc(scores, labels, weights)

    return {**bootstrap(statistic, len(pairs), seed=seed).to_dict(), "images": len(pairs)}


def _ordered_pairs(given: np.ndarray) -> np.ndarray:
    """(3, pairs): one rating's score for poor, whether the other says poor, and the pair's weight.

    An image counts by its number of ratings, not by its number of pairs.
    """
    first, second = np.nonzero(~np.eye(len(given), dtype=bool))
    weight = np.full(len(first), 1 / (len(given) - 1))
    return np.stack([-given[first].astype(float), (given[second] == 1).astype(float), weight])
