"""What a release of a simulated loop is worth: by the gold quality, by the panel, by its certificate. Pure.

Served means: the score reaches the threshold. Three thresholds are looked at: the one that serves the same share of
the candidates in every arm, the application's own (quality_threshold), and the certified one.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from generation.certificate import Promise, calibrate, further_ratings, panel_says_poor
from generation.memorisation import MemoryIndex
from ratings.agreement.coefficients import krippendorff_alpha
from ratings.agreement.estimate import Bootstrap
from ratings.agreement.table import RatingTable
from training.evaluation.ms_ssim import PairTable
from training.rlhf.evaluation import auc
from training.simulation.loop.images import LoopImages
from training.simulation.loop.panel import Truth

OWN_THRESHOLD = 0.6  # the application's quality_threshold
_PER_KIND = 8  # images of a kind whose pairs tell the diversity: 28 pairs
_FIRST_VERSION = 1


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What the panel said of the calibration images: C images, R ratings, first showings only."""

    images: tuple[str, ...]  # (C,) names
    grades: tuple[tuple[int, ...], ...]  # (C,) of each image, in the order of the readers
    image: np.ndarray  # (R,) position of each rating's image
    reader: np.ndarray  # (R,)
    grade: np.ndarray  # (R,) 1 to 3

    def is_poor(self, seed: int) -> np.ndarray:
        """(C,) bool by the rule of certificates."""
        told = zip(self.images, self.grades, strict=True)
        return np.array([panel_says_poor(grades, image_key=name, seed=seed) for name, grades in told], dtype=bool)

    def shares_of(self, served: np.ndarray) -> dict[str, Any]:
        """Shares of the ratings of the images that ``served`` (C,) marks."""
        given = self.grade[served[self.image]]
        return {
            "poor": float((given == 1).mean()) if len(given) else None,
            "excellent": float((given == 3).mean()) if len(given) else None,
            "images": int(served.sum()),
            "ratings": len(given),
        }

    def alpha(self) -> float | None:
        """Krippendorff's ordinal alpha of the panel on these images."""
        table = RatingTable.from_ratings(self.image, self.reader, self.grade)
        return krippendorff_alpha(table, bootstrap=Bootstrap(num_resamples=1)).estimate


@dataclass(frozen=True, eq=False)
class Measured:
    """All that a release is measured with; scores are the arm's own."""

    fresh: LoopImages  # F images that nothing was learnt from or chosen by
    fresh_scores: np.ndarray  # (F,)
    unrated_scores: np.ndarray  # (U,)
    calibration_scores: np.ndarray  # (C,)
    verdicts: Verdicts
    truth: Truth
    seed: int


def figures(given: Measured, *, serve: float, promise: Promise, index: MemoryIndex | None = None) -> dict[str, Any]:
    """One release as JSON. ``index``: of what the generator was trained on, where there is one.

    "certificate" spends what the promise's version may; "certificate_alone" all of delta, which is right for this one
    release as if no other were tested: nothing in a loop depends on what a test says.
    """
    even = equal_share_threshold(given.unrated_scores, serve)
    served = _served(given, even)
    chosen = np.flatnonzero(given.fresh_scores >= even)
    return {
        "auc_poor": auc(-given.fresh_scores, given.truth.is_poor(given.fresh.quality)),
        "candidates": _served(given, -np.inf),
        "served": served | {"threshold": even, "diversity": diversity(given.fresh, chosen, seed=given.seed)},
        "copies": copies(given.fresh.subset(chosen), index),
        "own_threshold": _served(given, OWN_THRESHOLD),
        "panel": given.verdicts.shares_of(given.calibration_scores >= even) if len(given.verdicts.images) else None,
        "agreement": given.verdicts.alpha() if len(given.verdicts.images) else None,
        "certificate": certificate(given, promise),
        "certificate_alone": certificate(given, replace(promise, version=None)),
    }


def equal_share_threshold(unrated_scores: np.ndarray, serve: float) -> float:
    """The score from which on a share ``serve`` of unrated images is served."""
    return float(np.quantile(unrated_scores, 1 - serve, method="inverted_cdf"))


def _served(given: Measured, threshold: float) -> dict[str, Any]:
    """Of the fresh images, those from the threshold on: shares by gold, and what one of them costs."""
    passes = given.fresh_scores >= threshold
    quality, share = given.fresh.quality[passes], float(passes.mean())
    each = given.fresh.unet_evaluations
    return {
        "poor": float(given.truth.is_poor(quality).mean()) if len(quality) else None,
        "excellent": float(given.truth.is_excellent(quality).mean()) if len(quality) else None,
        "yield": share,
        "images": len(quality),
        "candidates_per_accepted": 1 / share if share else None,
        "unet_evaluations_per_accepted": each / share if share and each is not None else None,
    }


def certificate(given: Measured, promise: Promise) -> dict[str, Any] | None:
    """The procedure of certificates on the calibration images, and whether its promise holds on the fresh ones.

    None before any rating.
    """
    if not len(given.verdicts.images):
        return None
    is_poor = given.verdicts.is_poor(given.seed)
    sample = (given.calibration_scores, is_poor)
    found = calibrate(*sample, unrated_scores=given.unrated_scores, promise=promise)
    told: dict[str, Any] = {
        "certified": found.is_certified,
        "calibration_images": found.num_images,
        "poor_by_panel": float(is_poor.mean()),
        "spent_delta": promise.spent_delta,
    }
    if not found.is_certified:
        further = further_ratings(*sample, unrated_scores=given.unrated_scores, promise=promise)
        return told | {"refusal": found.refusal, "num_further": further}
    on_fresh = _served(given, found.threshold)
    held = on_fresh["poor"] is None or on_fresh["poor"] <= promise.alpha
    return told | {"threshold": found.threshold, "bound": found.poor_bound, "held": held, **on_fresh}


def promise_of(alpha: float, delta: float, number: int) -> Promise:
    """Of the release of round ``number``: all releases are tested on one growing calibration set, so the v-th test
    spends 6 / (pi v)^2 of delta."""
    return Promise(alpha=alpha, delta=delta, version=max(number, _FIRST_VERSION))


def diversity(images: LoopImages, chosen: np.ndarray, *, seed: int) -> float | None:
    """Mean MS-SSIM of pairs of one kind among the first eight of each kind that are served; lower is more diverse."""
    kinds = np.array(images.kind_slugs)[chosen]
    places = [chosen[np.flatnonzero(kinds == kind)[:_PER_KIND]] for kind in sorted(set(kinds))]
    places = [place for place in places if len(place) > 1]
    if not places:
        return None
    index = np.concatenate(places)
    labels = [images.kind_slugs[i] for i in index]
    table = PairTable(images.tensor[torch.from_numpy(index)], labels, seed=seed)
    return table.mean(dict.fromkeys(table.of_label, 1.0))


def copies(images: LoopImages, index: MemoryIndex | None) -> dict[str, Any] | None:
    """How many served images are copies of training images; None where no index was made."""
    if index is None or not len(images):
        return None
    found = index.judge(images.tensor.float() / 255, images.kind_slugs)
    return {"share": sum(each.is_copy for each in found) / len(found), "images": len(found)}


def no_verdicts() -> Verdicts:
    """Before any rating."""
    nothing = np.zeros(0, dtype=int)
    return Verdicts((), (), nothing, nothing, nothing)
