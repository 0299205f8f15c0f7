"""The threshold with a guarantee: Learn-then-Test for one kind of image [pure numpy and scipy].

What a certificate promises: with probability at least 1 - delta over the calibration ratings, at most a share alpha
of the images served is one that the panel calls poor. Calibration images are independent draws of the frozen
pipeline, so above a threshold that was fixed beforehand the number of poor ones is binomial; thresholds are tested
from strict to lenient, in an order fixed beforehand, until one cannot be shown to keep the promise (fixed-sequence
testing spends delta once, whatever the number of thresholds). It holds for any score and any number of ratings.

Source: Angelopoulos, Bates, Candès, Jordan, Lei: Learn then Test, arXiv:2110.01052 (2021), sections 2 and 3;
exact binomial p-values for a share; for a one-sided claim over M kinds Bonferroni's delta / M. Drift: a betting
martingale (Ville's inequality), as in Podkopaev and Ramdas, arXiv:2110.06177 (2021).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, betaincinv, betaln, gammaln  # scipy.stats takes a second to import

from medsyn.percent import percent

POOR = 1  # the grade that the promise is about
SERVED_SHARES = np.arange(2, 101, 2) / 100  # (50,) from strict to lenient
_START_MULTIPLES = (3, 2, 1)  # of the smallest sample, at the strictest threshold that is tested
_LATEST_START = 0.8  # share of images served; beyond it a smaller multiple is tried
_ENOUGH_TO_TELL = 10  # rated images that a poor rate is estimated from
_WANTED_POWER = 0.8  # that the ratings asked for will be enough
_MOST_RATINGS = 20_000  # beyond this, asking for more ratings is no advice
_BATCH_MISS = 0.05  # probability that is spent on the statement about the next images


class CalibrationError(ValueError):
    """The calibration data cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Promise:
    """What is to be certified, fixed before any calibration rating is seen."""

    alpha: float = 0.10  # largest share of poor images among those served, between 0 and 1
    delta: float = 0.10  # probability that the promise is broken, between 0 and 1
    num_kinds: int = 1  # kinds of image that are claimed together; each spends delta / num_kinds
    # None: the calibration set serves for this one test. A number v: the v-th test on it, which spends 6 / (pi v)^2
    # of delta; that the set may be used again must be settled before its first test, for that one then spends 0.61.
    version: int | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "delta"):
            if not 0 < getattr(self, name) < 1:
                raise CalibrationError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1, 0.10 say.")
        for name in ("num_kinds", "version"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise CalibrationError(f"{name} is {number}; it must be 1 or more.")

    @property
    def spent_delta(self) -> float:
        """The part of delta that this one test may spend."""
        share = 1.0 if self.version is None else 6 / (math.pi * self.version) ** 2
        return self.delta / self.num_kinds * share

    @property
    def smallest_sample(self) -> int:
        """Images that are just enough if none of them is poor: ceil(ln delta / ln(1 - alpha))."""
        return math.ceil(math.log(self.spent_delta) / math.log1p(-self.alpha))


@dataclass(frozen=True)
class Step:
    """One threshold that was tested."""

    served_share: float  # of unrated images, 0 to 1
    threshold: float  # an image is served from this score on
    num_above: int  # calibration images with at least this score
    num_poor: int  # poor ones among them
    p_value: float  # P(Bin(num_above, alpha) <= num_poor)


@dataclass(frozen=True)
class Calibration:
    """What the calibration ratings allow."""

    promise: Promise
    num_images: int  # rated calibration images
    num_unrated: int  # images that the thresholds come from
    steps: tuple[Step, ...]  # as tested, strict to lenient; the last one failed unless all held
    threshold: float | None  # None: refused
    refusal: str = ""  # why, in a sentence
    num_further: int | None = (
        None  # further ratings that would be enough with probability 0.8; None: none would, or certified
    )

    @property
    def is_certified(self) -> bool:
        return self.threshold is not None

    @property
    def held(self) -> Step | None:
        """The most lenient threshold that was shown to keep the promise."""
        passed = [step for step in self.steps if step.p_value <= self.promise.spent_delta]
        return passed[-1] if passed else None

    @property
    def poor_bound(self) -> float | None:
        """Upper confidence bound (Clopper and Pearson, level 1 - spent delta) of the poor share at the threshold."""
        step = self.held
        return None if step is None else upper_bound(step.num_poor, step.num_above, self.promise.spent_delta)


def upper_bound(num_poor: int, num_images: int, delta: float) -> float:
    """Clopper and Pearson's upper bound of a share at level 1 - delta; 1 where there are no images."""
    return 1.0 if num_poor >= num_images else float(betaincinv(num_poor + 1, num_images - num_poor, 1 - delta))


def most_poor_of_next(num_served: int, alpha: float) -> int:
    """Of the next ``num_served`` images at most so many are poor, with probability 1 - delta - 0.05."""
    chance = bdtr(np.arange(num_served + 1), num_served, alpha)  # of at most 0, 1, 2, ... poor ones
    return int(np.argmax(chance >= 1 - _BATCH_MISS))


def thresholds_of(unrated_scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Threshold of each of SERVED_SHARES: quantiles of the scores of images that nobody rated. (50,), falling."""
    scores = np.asarray(unrated_scores, dtype=np.float64)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise CalibrationError(
            "The scores of unrated images must be a list of finite numbers. Generate images first."
        )
    return np.quantile(scores, 1 - SERVED_SHARES, method="inverted_cdf")


def first_share(num_images: int, promise: Promise) -> int | None:
    """Where testing begins: index into SERVED_SHARES of the first share that leaves 3 times the smallest sample (2
    times, then once, where that exceeds 0.8); None: too few images even for all of them."""
    for multiple in _START_MULTIPLES:
        enough = np.flatnonzero(num_images * SERVED_SHARES >= multiple * promise.smallest_sample)
        if len(enough) and (SERVED_SHARES[enough[0]] <= _LATEST_START or multiple == 1):
            return int(enough[0])
    return None


def calibrate(
    scores: Sequence[float] | np.ndarray,
    is_poor: Sequence[bool] | np.ndarray,
    *,
    unrated_scores: Sequence[float] | np.ndarray,
    promise: Promise,
) -> Calibration:
    """Find the most lenient threshold that keeps the promise, or say why there is none.

    scores, is_poor: (n,) serving score and panel's verdict of the calibration images of one kind, independent draws
    of the frozen pipeline, never chosen by score and never trained on. unrated_scores: (N,) of other draws. Raises
    CalibrationError for arrays that do not fit together.
    """
    grid = thresholds_of(unrated_scores)
    return calibrate_at(scores, is_poor, thresholds=grid, num_unrated=len(unrated_scores), promise=promise)


def calibrate_at(
    scores: Sequence[float] | np.ndarray,
    is_poor: Sequence[bool] | np.ndarray,
    *,
    thresholds: Sequence[float] | np.ndarray,
    num_unrated: int,
    promise: Promise,
) -> Calibration:
    """``calibrate`` with thresholds (50,) that were settled before; num_unrated: N scores behind them."""
    scores, is_poor = _checked(scores, is_poor)
    grid = _checked_grid(thresholds)
    start = first_share(len(scores), promise)
    steps = () if start is None else fixed_sequence(scores, is_poor, SERVED_SHARES[start:], grid[start:], promise)
    held = [step for step in steps if step.p_value <= promise.spent_delta]
    return Calibration(
        promise=promise,
        num_images=len(scores),
        num_unrated=num_unrated,
        steps=steps,
        threshold=held[-1].threshold if held else None,
        refusal="" if held else _why_refused(promise, len(scores), steps),
    )


def _checked(
    scores: Sequence[float] | np.ndarray, is_poor: Sequence[bool] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    scores, is_poor = np.asarray(scores, dtype=np.float64), np.asarray(is_poor, dtype=bool)
    if scores.ndim != 1 or scores.shape != is_poor.shape or not np.isfinite(scores).all():
        raise CalibrationError(
            f"{scores.shape} scores and {is_poor.shape} verdicts; there must be one finite score for each verdict."
        )
    return scores, is_poor


def _checked_grid(thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    grid = np.asarray(thresholds, dtype=np.float64)
    if grid.shape != SERVED_SHARES.shape or not np.isfinite(grid).all() or (np.diff(grid) > 0).any():
        raise CalibrationError(
            f"The thresholds are {grid.shape}; there must be {len(SERVED_SHARES)} finite ones, strict to lenient."
        )
    return grid


def fixed_sequence(
    scores: np.ndarray, is_poor: np.ndarray, served_shares: np.ndarray, thresholds: np.ndarray, promise: Promise
) -> tuple[Step, ...]:
    """Test ``thresholds`` (T,) one after the other, up to and including the first that fails.

    scores, is_poor: (n,). served_shares: (T,), what each threshold serves. The order must not come from these scores.
    """
    above = scores >= thresholds[:, None]  # (T, n)
    num_above, num_poor = above.sum(1), (above & is_poor).sum(1)
    p_values = np.where(num_above > 0, bdtr(num_poor, num_above, promise.alpha), 1.0)
    failures = np.flatnonzero(p_values > promise.spent_delta)
    end = int(failures[0]) + 1 if len(failures) else len(p_values)
    columns = (served_shares, thresholds, num_above, num_poor, p_values)
    return tuple(Step(*values) for values in zip(*(column[:end].tolist() for column in columns), strict=True))


def _why_refused(promise: Promise, num_images: int, steps: tuple[Step, ...]) -> str:
    if not steps:
        smallest = promise.smallest_sample
        return f"{num_images} calibration images are rated; even without a single poor one it takes {smallest}."
    first = steps[0]
    return (
        f"Of the {first.num_above} calibration images with the best scores the panel calls {first.num_poor} poor; "
        f"that does not show that at most {percent(promise.alpha)} are (p = {first.p_value:.2g}, allowed "
        f"{promise.spent_delta:.2g})."
    )


def power(num_images: int, scores: np.ndarray, is_poor: np.ndarray, grid: np.ndarray, promise: Promise) -> float:
    """Probability that ``num_images`` calibration images certify something, by what (n,) rated ones have shown.

    The number of poor ones at the first threshold is beta-binomial: Jeffreys' prior, updated by the rated images
    above that threshold or, where those are fewer than ten, above the next one that has ten. So it leaves in how
    little a few ratings tell. grid: of ``thresholds_of``.
    """
    start = first_share(num_images, promise)
    if start is None:
        return 0.0
    above = scores >= grid[start:, None]
    known = above[np.flatnonzero((above.sum(1) >= _ENOUGH_TO_TELL) | (np.arange(len(above)) == len(above) - 1))[0]]
    num_above, num_poor = int(known.sum()), int((known & is_poor).sum())
    num_tested = round(num_images * float(SERVED_SHARES[start]))
    allowed = np.flatnonzero(bdtr(np.arange(num_tested + 1), num_tested, promise.alpha) <= promise.spent_delta)
    if not len(allowed):
        return 0.0
    return _betabinomial_cdf(int(allowed[-1]), num_tested, num_poor + 0.5, num_above - num_poor + 0.5)


def _betabinomial_cdf(most: int, num_draws: int, a: float, b: float) -> float:
    """P(X <= most) for X ~ Bin(num_draws, P) with P ~ Beta(a, b)."""
    k = np.arange(most + 1)
    ways = gammaln(num_draws + 1) - gammaln(k + 1) - gammaln(num_draws - k + 1)
    return float(min(1.0, np.exp(ways + betaln(k + a, num_draws - k + b) - betaln(a, b)).sum()))


def further_ratings(
    scores: Sequence[float] | np.ndarray,
    is_poor: Sequence[bool] | np.ndarray,
    *,
    unrated_scores: Sequence[float] | np.ndarray,
    promise: Promise,
) -> int | None:
    """How many more random ratings certify something with probability 0.8; None: not even 20,000 in all would.

    Arguments as for ``calibrate``.
    """
    return further_ratings_at(scores, is_poor, thresholds=thresholds_of(unrated_scores), promise=promise)


def further_ratings_at(
    scores: Sequence[float] | np.ndarray,
    is_poor: Sequence[bool] | np.ndarray,
    *,
    thresholds: Sequence[float] | np.ndarray,
    promise: Promise,
) -> int | None:
    """``further_ratings`` with thresholds that were settled before."""
    (scores, is_poor), grid = _checked(scores, is_poor), _checked_grid(thresholds)
    wanted = max(len(scores) + 1, promise.smallest_sample)
    while wanted <= _MOST_RATINGS:
        if power(wanted, scores, is_poor, grid, promise) >= _WANTED_POWER:
            return wanted - len(scores)
        wanted = math.ceil(wanted * 1.05)
    return None


def power_curve(
    scores: Sequence[float] | np.ndarray,
    is_poor: Sequence[bool] | np.ndarray,
    *,
    thresholds: Sequence[float] | np.ndarray,
    promise: Promise,
    num_points: int = 40,
) -> list[tuple[int, float]]:
    """(rated images in all, probability that they certify something), from the smallest sample to well beyond what is
    rated and what is needed, in equal ratios. By ``power``, so by what the (n,) rated images have shown."""
    (scores, is_poor), grid = _checked(scores, is_poor), _checked_grid(thresholds)
    further = further_ratings_at(scores, is_poor, thresholds=grid, promise=promise)
    last = max(2 * len(scores), 4 * promise.smallest_sample, 1.5 * (len(scores) + (further or 0)))
    numbers = np.unique(
        np.geomspace(promise.smallest_sample, min(last, _MOST_RATINGS), num_points).round().astype(int)
    )
    return [(int(number), power(int(number), scores, is_poor, grid, promise)) for number in numbers]


def panel_says_poor(grades: Sequence[int], *, image_key: str, seed: int) -> bool:
    """The panel's verdict of one image: of three or more grades the majority, ties counting as poor; of fewer one
    rater's, drawn by sha256 of (seed, image_key), so that nobody's choice decides.

    grades: first showings, 1 poor to 3 excellent. Raises CalibrationError where there are none.
    """
    if not grades:
        raise CalibrationError(f"Image {image_key} has no rating; it is no calibration image.")
    if len(grades) >= 3:
        return 2 * sum(grade == POOR for grade in grades) >= len(grades)
    draw = int.from_bytes(hashlib.sha256(f"{seed}/{image_key}".encode()).digest()[:8])
    return grades[draw % len(grades)] == POOR


@dataclass(frozen=True)
class Drift:
    """What later ratings of randomly drawn served images say of a promise: capital of a bet that it is broken.

    While the promise holds the capital is a non-negative supermartingale from 1, so it ever reaches 1 / false_alarm
    with at most that probability (Ville).
    """

    alpha: float
    capital: float = 1.0
    false_alarm: float = 0.05  # probability of ever revoking a promise that holds

    @property
    def is_revoked(self) -> bool:
        return self.capital >= 1 / self.false_alarm

    def after(self, is_poor: bool) -> "Drift":
        """The state after one more rating; once revoked, nothing changes."""
        if self.is_revoked:
            return self
        stake = 0.5 / (1 - self.alpha)
        return Drift(self.alpha, self.capital * (1 + stake * (float(is_poor) - self.alpha)), self.false_alarm)
