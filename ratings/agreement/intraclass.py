"""Intraclass correlation: two-way random effects, absolute agreement, of one rating and of the mean of all readers.

Shrout & Fleiss, Psychol Bull 86 (1979) 420, ICC(2,1) and ICC(2,k); intervals by F after McGraw & Wong, Psychol
Methods 1 (1996) 30, table 7. Grades are taken as numbers a step apart.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import fdtri

from ratings.agreement.estimate import CONFIDENCE, Estimate, joined
from ratings.agreement.table import RatingTable

_NO_VARIANCE = 1e-12
_NO_INTERVAL = "No interval: the ratings leave no error that the F distribution could speak of."
_TOO_WIDE = "No interval: that of a single rating is so wide that it says nothing about the mean of all readers."
_CONTRARY = "The readers contradict each other so much that the estimated variances have no sensible ratio."


@dataclass(frozen=True)
class IntraclassCorrelation:
    """Both forms, from the same images."""

    single: Estimate  # ICC(2,1): what one reader's rating is worth
    average: Estimate  # ICC(2,k): what the mean of all k readers is worth


def intraclass_correlation(table: RatingTable, *, confidence: float = CONFIDENCE) -> IntraclassCorrelation:
    """ICC(2,1) and ICC(2,k) over the images that every reader with a rating has rated.

    The analysis of variance needs complete rows: images with a rating missing are left out, and ``reason`` says how
    many. Where that leaves little, take alpha with the interval distance, which is the same idea and uses them all.
    """
    grades = table.grades[:, (table.grades > 0).any(0)].astype(float)
    complete = grades[(grades > 0).all(1)]
    num_images, num_readers = complete.shape
    left_out = int((grades > 0).any(1).sum()) - num_images
    remark = f"{left_out} images not rated by all {num_readers} readers left out." if left_out else ""
    obstacle = _obstacle(complete)
    if obstacle:
        none = Estimate.undefined(obstacle, n_images=num_images, n_ratings=complete.size)
        return IntraclassCorrelation(none, none)
    rows, columns, error = _mean_squares(complete)
    between = (columns - error) / num_images
    single = _ratio(rows - error, rows + (num_readers - 1) * error + num_readers * between)
    average = _ratio(rows - error, rows + between)
    ends = (None, None) if single is None else _interval(rows, columns, error, single, complete.shape, confidence)
    stepped = _stepped_up(ends, num_readers)

    def estimate(value: float | None, low: float | None, high: float | None) -> Estimate:
        if value is None:
            return Estimate.undefined(_CONTRARY, n_images=num_images, n_ratings=complete.size)
        nothing = _NO_INTERVAL if ends[0] is None else _TOO_WIDE
        reason = joined(remark, nothing if low is None else "")
        return Estimate(value, low, high, num_images, complete.size, reason, "" if low is None else "F distribution")

    return IntraclassCorrelation(estimate(single, *ends), estimate(average, *stepped))


def _stepped_up(ends: tuple[float | None, float | None], num_readers: int) -> tuple[float | None, float | None]:
    """Spearman and Brown's step from one rating to the mean of ``num_readers``. Where the lower end lies at or below
    its pole, -1 / (k - 1), the step turns the order of the ends around: then there is no interval."""
    if ends[0] is None or 1 + (num_readers - 1) * ends[0] <= _NO_VARIANCE:
        return None, None
    return tuple(num_readers * end / (1 + (num_readers - 1) * end) for end in ends)


def _obstacle(complete: np.ndarray) -> str:
    num_images, num_readers = complete.shape
    if num_readers == 0:
        return "There are no ratings."
    if num_readers == 1:
        return "Only one reader has rated: agreement takes two."
    if num_images < 2:
        number = "Only one image was" if num_images else "No image was"
        return f"{number} rated by all {num_readers} readers: at least two such images are needed."
    if np.ptp(complete) == 0:
        return f"Every rating is grade {complete[0, 0]:.0f}: without differences there is nothing to correlate."
    return ""


def _ratio(numerator: float, denominator: float) -> float | None:
    """None where the estimated variances add up to nothing or less, and the ratio is no share of anything."""
    return float(numerator / denominator) if denominator > _NO_VARIANCE else None


def _mean_squares(grades: np.ndarray) -> tuple[float, float, float]:
    """Mean squares between images, between readers, and of the rest."""
    num_images, num_readers = grades.shape
    mean, of_image, of_reader = grades.mean(), grades.mean(1), grades.mean(0)
    rows = num_readers * ((of_image - mean) ** 2).sum() / (num_images - 1)
    columns = num_images * ((of_reader - mean) ** 2).sum() / (num_readers - 1)
    rest = grades - of_image[:, None] - of_reader + mean
    return rows, columns, (rest**2).sum() / ((num_images - 1) * (num_readers - 1))


def _interval(
    rows: float, columns: float, error: float, icc: float, shape: tuple[int, int], confidence: float
) -> tuple[float | None, float | None]:
    """Ends for the single rating; None where there is no error to compare with."""
    n, k = shape
    # McGraw & Wong's a and b, both times 1 - icc: v is the same and perfect agreement no division by zero.
    a, b = k * icc / n, 1 - icc + k * icc * (n - 1) / n
    scatter = (a * columns) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1))
    if scatter < _NO_VARIANCE:
        return None, None
    v = (a * columns + b * error) ** 2 / scatter
    tail = (1 + confidence) / 2
    f_low, f_high = fdtri(n - 1, v, tail), fdtri(v, n - 1, tail)
    spread = k * columns + (k * n - k - n) * error
    low = n * (rows - f_low * error) / (f_low * spread + n * rows)
    high = n * (f_high * rows - error) / (spread + n * f_high * rows)
    return float(low), float(high)
