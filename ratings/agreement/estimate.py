"""A figure with its interval, and the two general ways to an interval: the bootstrap over images, and Wilson's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from medsyn.intervals import wilson
from medsyn.percent import percent

CONFIDENCE = 0.95
_CHUNK_CELLS = 2_000_000  # weights held at a time, 16 MB, however many images and resamples there are
_MAX_UNDEFINED_SHARE = 0.05  # of the resamples; with more the percentiles would speak of a selection
_SAME = 1e-12  # a spread of the resamples below this is rounding
# A multinomial draw per distinct row costs about as much as a dozen draws of single images.
_IMAGES_PER_MULTINOMIAL_CELL = 12


@dataclass(frozen=True)
class Estimate:
    """A figure, its interval, what it rests on. None: not defined, or not to be had; ``reason`` says why."""

    estimate: float | None
    low: float | None
    high: float | None
    n_images: int  # images that entered
    n_ratings: int  # ratings of these images that entered
    reason: str = ""  # why figure or interval is missing, or what was left out; empty: nothing to say
    method: str = ""  # how the interval was made; empty: there is none

    @classmethod
    def undefined(cls, reason: str, *, n_images: int = 0, n_ratings: int = 0) -> "Estimate":
        """No figure, for the reason given."""
        return cls(None, None, None, n_images, n_ratings, reason)


@dataclass(frozen=True)
class Bootstrap:
    """How intervals by resampling are made. The same numbers give the same interval."""

    num_resamples: int = 1000
    seed: int = 0
    confidence: float = CONFIDENCE  # of the interval, above 0 and below 1

    def __post_init__(self):
        if self.num_resamples < 1 or not 0 < self.confidence < 1:
            raise ValueError(
                f"{self.num_resamples} resamples at confidence {self.confidence}: take at least one resample and a "
                "confidence between 0 and 1."
            )

    @property
    def method(self) -> str:
        return f"bootstrap over images, {self.num_resamples} resamples"

    def blocks(self, *counts: np.ndarray) -> Iterator[int]:
        """Sizes of the blocks in which weights for ``counts`` are drawn, ``num_resamples`` together."""
        widest = max(len(each) if _is_condensed(each) else int(each.sum()) for each in counts)
        size = max(1, _CHUNK_CELLS // max(1, widest))
        for start in range(0, self.num_resamples, size):
            yield min(size, self.num_resamples - start)

    def interval(self, values: np.ndarray) -> tuple[float | None, float | None, str]:
        """Percentile interval of resampled values (B,), and the reason where there is none. NaN: undefined there."""
        defined = values[np.isfinite(values)]
        missing = 1 - len(defined) / len(values)
        if missing > _MAX_UNDEFINED_SHARE:
            return None, None, f"No interval: in {percent(missing, 0)} of the resamples the figure is not defined."
        if np.ptp(defined) < _SAME:
            return None, None, "No interval: every resample gives the same figure, as the images are all alike."
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return float(low), float(high), ""


BY_DEFAULT = Bootstrap()


def _is_condensed(counts: np.ndarray) -> bool:
    return counts.sum() > _IMAGES_PER_MULTINOMIAL_CELL * len(counts)


def draw_weights(counts: np.ndarray, num_draws: int, generator: np.random.Generator) -> np.ndarray:
    """As many images as there are, drawn with replacement, ``num_draws`` times.

    ``counts`` (K,): how many images have each of K distinct rows. Returns (num_draws, K) float64: how often each row
    was drawn. Images with the same row are alike, so that drawing rows is drawing images.
    """
    num_images, num_rows = int(counts.sum()), len(counts)
    if _is_condensed(counts):
        return generator.multinomial(num_images, counts / num_images, num_draws).astype(float)
    drawn = np.repeat(np.arange(num_rows), counts)[generator.integers(0, num_images, (num_draws, num_images))]
    drawn += np.arange(num_draws)[:, None] * num_rows
    return np.bincount(drawn.ravel(), minlength=num_draws * num_rows).reshape(num_draws, num_rows).astype(float)


def bootstrap_estimate(
    statistic: Callable[[np.ndarray], np.ndarray],
    counts: np.ndarray,
    bootstrap: Bootstrap,
    *,
    n_ratings: int,
    undefined: str,
    remark: str = "",
) -> Estimate:
    """The figure and its percentile interval over images.

    ``statistic`` takes weights (B, K) of K distinct rows and gives (B,) values, NaN where undefined; ``counts``
    (K,) images per row; ``undefined``: the reason if the figure itself is; ``remark``: said beside a figure.
    """
    n_images = int(counts.sum())
    value = float(statistic(counts[None].astype(float))[0])
    if not np.isfinite(value):
        return Estimate.undefined(undefined, n_images=n_images, n_ratings=n_ratings)
    generator = np.random.default_rng(bootstrap.seed)
    values = [statistic(draw_weights(counts, size, generator)) for size in bootstrap.blocks(counts)]
    low, high, reason = bootstrap.interval(np.concatenate(values))
    method = "" if low is None else bootstrap.method
    return Estimate(value, low, high, n_images, n_ratings, joined(remark, reason), method)


def share_estimate(
    num: int, total: int, *, n_ratings: int, undefined: str, confidence: float = CONFIDENCE
) -> Estimate:
    """The share ``num / total`` of independent images with Wilson's score interval (1927)."""
    if num == total == 0:
        return Estimate.undefined(undefined)
    low, high = wilson(num, total, confidence)
    return Estimate(num / total, low, high, total, n_ratings, method="Wilson")


def joined(*sentences: str) -> str:
    """Sentences one after the other, empty ones left out."""
    return " ".join(sentence for sentence in sentences if sentence)
