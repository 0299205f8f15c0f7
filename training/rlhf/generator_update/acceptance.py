"""Is the updated generator better? Tests on two samples drawn from the same prompts and seeds, before and after.

Accepted only if all four hold (METHOD.md section 6), alpha = 5 % one-sided each:

    poor rate     falls: exact McNemar test on the pairs, P(Bin(b + c, 1/2) >= b) <= alpha, b pairs that were poor and
                  are so no more, c pairs the other way round
    diversity     1 - MS-SSIM within prompt groups: a fall of more than 5 % is excluded, that is, the lower bound of
                  the relative change lies above - 5 %. Noise and artefacts make images differ too: where the old
                  generator's exceeds that of real images, theirs is what must be kept
    coverage      share of real images with a generated one in their neighbourhood: as diversity
    copies        the share of images nearer to a training image than 99 % of held-out real ones does not rise: no
                  exact McNemar test at alpha says so

Refusing is the safe error: where the sample is too small to exclude a fall, the generator stays as it was.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.stats import binom, norm
from torch import Tensor

from generation.memorisation import LEVEL, small_pictures, thumbnail_correlation
from medsyn.percent import percent
from training.evaluation.intervals import wilson
from training.evaluation.ms_ssim import PairTable

ALPHA = 0.05  # one-sided, of each test
MAX_FALL = 0.05  # relative, of diversity and coverage
# k of the coverage. With 5, as usual, 300 images cannot exclude a fall of 5 % even where there is none.
NEIGHBOURS = 10
_NUM_BOOTSTRAPS = 400
_NUM_HALVES = 200  # of the jackknife


@dataclass(frozen=True)
class PairedRates:
    """Shares of the same N prompts and seeds, before and after."""

    before: np.ndarray  # (N,) bool
    after: np.ndarray  # (N,) bool

    @property
    def mended(self) -> int:
        return int((self.before & ~self.after).sum())

    @property
    def spoilt(self) -> int:
        return int((~self.before & self.after).sum())

    @property
    def p_fall(self) -> float:
        """Chance of as many mended pairs if nothing had changed: small where the share fell."""
        return _binomial_tail(self.mended, self.mended + self.spoilt)

    @property
    def p_rise(self) -> float:
        return _binomial_tail(self.spoilt, self.mended + self.spoilt)

    def to_dict(self) -> dict[str, object]:
        shares = {}
        for name, values in (("before", self.before), ("after", self.after)):
            share = wilson(int(values.sum()), len(values))
            shares[name] = {"value": share.value, "low": share.low, "high": share.high}
        return {**shares, "mended": self.mended, "spoilt": self.spoilt, "p_fall": self.p_fall, "p_rise": self.p_rise}


def _binomial_tail(successes: int, trials: int) -> float:
    """P(Bin(trials, 1/2) >= successes)."""
    return float(binom.sf(successes - 1, trials, 0.5)) if trials else 1.0


@dataclass(frozen=True)
class Change:
    """A measure before and after, and its relative change with one-sided 95 % bounds."""

    before: float
    after: float
    low: float  # of the relative change
    high: float
    real: float | None = None  # of real images, where no more than that has to be kept

    @property
    def kept(self) -> float:
        """What the change is relative to."""
        return self.before if self.real is None else min(self.before, self.real)

    @property
    def relative(self) -> float:
        return self.after / self.kept - 1

    def to_dict(self) -> dict[str, float | None]:
        return {
            "before": self.before, "after": self.after, "real": self.real, "relative": self.relative,
            "low": self.low, "high": self.high,
        }  # fmt: skip


def diversity_change(
    before: PairTable, after: PairTable, labels: Sequence[str], *, seed: int, real: PairTable | None = None
) -> Change:
    """Of 1 - MS-SSIM within groups; the bootstrap draws the same images of both samples.

    ``before`` and ``after`` are tables of the same labels and seed, so they hold the same positions. ``real`` is
    taken as it is, a level and no sample; groups that it lacks are left out.
    """
    shared = before.of_label if real is None else before.of_label.keys() & real.of_label.keys()
    weights = {label: count for label, count in sorted(Counter(labels).items()) if label in shared}
    if not weights:
        raise ValueError("No prompt group has two images: diversity cannot be measured. Draw a larger sample.")
    level = None if real is None else 1 - real.mean(weights)
    rng, ratios = np.random.default_rng(seed), []
    shares = np.array(list(weights.values()), dtype=float)
    for _ in range(_NUM_BOOTSTRAPS):
        means = [_paired_means(before.of_label[name], after.of_label[name], rng) for name in weights]
        old, new = 1 - np.average(np.array(means), axis=0, weights=shares)
        ratios.append(new / min(old, np.inf if level is None else level) - 1)
    low, high = np.quantile(ratios, [ALPHA, 1 - ALPHA])
    return Change(1 - before.mean(weights), 1 - after.mean(weights), float(low), float(high), level)


def _paired_means(before: np.ndarray, after: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Mean similarity of different images among as many, drawn with replacement, in both tables (n, n)."""
    while True:
        drawn = rng.integers(0, len(before), len(before))
        different = drawn[:, None] != drawn[None, :]
        if different.any():
            return tuple(float(table[np.ix_(drawn, drawn)][different].mean()) for table in (before, after))


def coverage_change(
    real: np.ndarray, before: np.ndarray, after: np.ndarray, *, k: int = NEIGHBOURS, seed: int = 0
) -> Change:
    """Of the coverage (Naeem et al. 2020) of real features (M, D) by paired samples (N, D).

    Bounds from the delete-half jackknife of log(after / before), over the pairs and over the real images. (Leaving
    out single images or small groups is inconsistent for a measure as little smooth as this: Shao and Wu 1989.)
    """
    if len(real) <= k or len(before) != len(after):
        raise ValueError(f"{len(real)} real images, {len(before)} and {len(after)} drawn: need {k + 1}, and pairs.")
    distances = cdist(real, real)
    np.fill_diagonal(distances, np.inf)
    radii = np.partition(distances, k - 1, axis=1)[:, k - 1]
    hits = [cdist(real, sample) <= radii[:, None] for sample in (before, after)]  # (M, N) each
    old, new = (_coverage(each) for each in hits)
    pairs, reals = (_halves(length, seed) for length in (len(before), len(real)))
    variance = np.var([_log_ratio([each[:, kept] for each in hits]) for kept in pairs])
    variance += np.var([_log_ratio([each[kept] for each in hits]) for kept in reals])
    half = norm.ppf(1 - ALPHA) * np.sqrt(variance)
    middle = np.log(new / old)
    return Change(old, new, float(np.expm1(middle - half)), float(np.expm1(middle + half)))


def _coverage(hits: np.ndarray) -> float:
    # Half an image where there is none: a ratio of coverages needs both above 0.
    return max(float(hits.any(1).mean()), 0.5 / len(hits))


def _log_ratio(hits: Sequence[np.ndarray]) -> float:
    before, after = (_coverage(each) for each in hits)
    return float(np.log(after / before))


def _halves(length: int, seed: int) -> list[np.ndarray]:
    """Random halves: the variance over them estimates that of the whole, (n - d) / d being 1."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(length)[: length // 2] for _ in range(_NUM_HALVES)]


# --- the decision ---


@dataclass(frozen=True)
class Decision:
    """Accepted or refused, with every figure that it rests on."""

    poor: PairedRates
    poor_by: str  # who calls an image poor, and when: for people
    diversity: Change
    coverage: Change
    copies: PairedRates

    @property
    def objections(self) -> list[str]:
        """Why the updated generator is refused, a sentence each; none where it is accepted."""
        found = []
        if self.poor.p_fall > ALPHA:
            found.append(
                f"The poor rate does not fall with {percent(0.95)} confidence: "
                f"{percent(self.poor.before.mean(), 1)} before, {percent(self.poor.after.mean(), 1)} after "
                f"(p = {self.poor.p_fall:.3f}; poor: {self.poor_by})."
            )
        for name, change in (("Diversity", self.diversity), ("Coverage", self.coverage)):
            if not change.low >= -MAX_FALL:
                found.append(
                    f"{name} may fall by more than {percent(MAX_FALL)}: {change.before:.3f} before"
                    + ("" if change.real is None else f" ({change.real:.3f} of real images)")
                    + f", {change.after:.3f} after, a change of {percent(change.relative, 1, is_signed=True)} "
                    f"that may be as low as {percent(change.low, 1, is_signed=True)}."
                )
        if self.copies.p_rise <= ALPHA:
            found.append(
                f"More images resemble a training image: {percent(self.copies.before.mean(), 1)} before, "
                f"{percent(self.copies.after.mean(), 1)} after (p = {self.copies.p_rise:.3f})."
            )
        return found

    @property
    def is_accepted(self) -> bool:
        return not self.objections

    def to_dict(self) -> dict[str, object]:
        return {
            "accepted": self.is_accepted,
            "objections": self.objections,
            "poor_by": self.poor_by,
            "poor": self.poor.to_dict(),
            "diversity": self.diversity.to_dict(),
            "coverage": {**self.coverage.to_dict(), "k": NEIGHBOURS},
            "copies": self.copies.to_dict(),
            "images": len(self.poor.before),
        }


def copies_of_training_images(pixels: Tensor, *, training: Tensor, held_out: Tensor) -> np.ndarray:
    """(N,) bool: images nearer to a training image than 99 % of the held-out ones are; all uint8 (., 3, H, W).

    By the correlation of thumbnails, which is quick: rates are compared here, whereas what is served is held against
    the memory index.
    """
    trained = small_pictures(training.float() / 255)
    limit = torch.quantile(thumbnail_correlation(held_out.float() / 255, trained), 1 - LEVEL)
    return (thumbnail_correlation(pixels.float() / 255, trained) > limit).numpy()
