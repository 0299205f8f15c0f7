"""Figures of a run that a page draws: reliability, histograms, the pass curve, and where the scores are most wrong.

All on the held-out images and their single ratings, as given. numpy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ratings.agreement.estimate import share_estimate

RELIABILITY_BINS = 10  # of equal width
HISTOGRAM_BINS = 20
PASS_THRESHOLDS = tuple(round(0.02 * step, 2) for step in range(51))
MAX_WORST = 12
PASSES_POOR, FAILS_EXCELLENT = "passes, rated poor", "fails, rated excellent"
_POOR, _EXCELLENT = 1, 3


@dataclass(frozen=True)
class HeldOut:
    """The held-out images: n of them."""

    good: np.ndarray  # (n,) the selector's P(r > 1), calibrated
    serving: np.ndarray  # (n,) its lower bound, by which images are served
    alignment: np.ndarray  # (n,) the policy's score with the own prompt
    grades: list[np.ndarray]  # n arrays of grades, one per rating
    paths: Sequence[str]
    sha256: Sequence[str]
    prompts: Sequence[str]


def reliability(good: np.ndarray, grades: list[np.ndarray]) -> list[dict[str, Any]]:
    """Stated against observed share of ratings above poor, in bins of equal width; empty bins are left out.

    ``count`` ratings fall into a bin; the interval is Wilson's, 95 %, as if they were independent.
    """
    stated = np.repeat(good, [len(given) for given in grades])
    is_good = np.concatenate(grades) > _POOR
    place = np.minimum((stated * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    bins = []
    for number in np.unique(place):
        inside = place == number
        count, observed = int(inside.sum()), int(is_good[inside].sum())
        share = share_estimate(observed, count, n_ratings=count, undefined="")
        bins.append(
            {
                "low": number / RELIABILITY_BINS,
                "high": (number + 1) / RELIABILITY_BINS,
                "count": count,
                "mean": float(stated[inside].mean()),
                "observed": share.estimate,
                "observed_low": share.low,
                "observed_high": share.high,
            }
        )
    return bins


def histogram(scores: np.ndarray, grades: list[np.ndarray]) -> dict[str, Any]:
    """Ratings by score and grade: every rating counts once, at its image's score."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    at = np.repeat(scores, [len(given) for given in grades])
    given = np.concatenate(grades)
    counts = {str(grade): np.histogram(at[given == grade], edges)[0].tolist() for grade in (1, 2, 3)}
    return {"edges": edges.round(6).tolist(), "by_grade": counts}


def pass_curve(held_out: HeldOut) -> list[dict[str, float | None]]:
    """By threshold, the share of images that pass the selector, and both networks, and how poor those are.

    Poor: mean over the images that pass of the share of their ratings that say poor; None where none passes.
    """
    poor = _shares(held_out.grades, _POOR)
    lower = np.minimum(held_out.serving, held_out.alignment)
    curve = []
    for threshold in PASS_THRESHOLDS:
        selector, both = held_out.serving >= threshold, lower >= threshold
        curve.append(
            {
                "threshold": threshold,
                "selector": float(selector.mean()),
                "both": float(both.mean()),
                "poor_selector": float(poor[selector].mean()) if selector.any() else None,
                "poor_both": float(poor[both].mean()) if both.any() else None,
            }
        )
    return curve


def worst(held_out: HeldOut, *, threshold: float) -> list[dict[str, Any]]:
    """Images that would be served and most of whose ratings say poor, or the reverse, by the size of the error.

    The error is the distance of the lower score from 0, of images rated poor, or from 1, of those rated excellent.
    """
    lower = np.minimum(held_out.serving, held_out.alignment)
    served = lower >= threshold
    poor, excellent = (_shares(held_out.grades, grade) > 0.5 for grade in (_POOR, _EXCELLENT))
    error = np.where(served & poor, lower, np.where(~served & excellent, 1 - lower, -1.0))
    order = [item for item in np.argsort(-error, kind="stable") if error[item] >= 0]
    return [
        {
            "image_path": held_out.paths[item],
            "image_sha256": held_out.sha256[item],
            "prompt": held_out.prompts[item],
            "grades": held_out.grades[item].tolist(),
            "selector": float(held_out.serving[item]),
            "policy": float(held_out.alignment[item]),
            "why": PASSES_POOR if served[item] else FAILS_EXCELLENT,
        }
        for item in order[:MAX_WORST]
    ]


def _shares(grades: list[np.ndarray], grade: int) -> np.ndarray:
    """(n,) share of each image's ratings that say ``grade``."""
    return np.array([(given == grade).mean() for given in grades])
