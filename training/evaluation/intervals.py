"""Intervals of the figures: Wilson's for shares, the bootstrap over groups for means."""

from dataclasses import dataclass

import numpy as np

from medsyn import intervals

CONFIDENCE = 0.95
NUM_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Interval:
    """A value between the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(num_right: int, num: int, confidence: float = CONFIDENCE) -> Interval:
    """The share ``num_right / num`` with Wilson's score interval (1927); for images that are independent."""
    ends = intervals.wilson(num_right, num, confidence)
    return Interval(num_right / num, *ends)


def mean_over_groups(values: np.ndarray, groups: np.ndarray, *, seed: int) -> Interval:
    """The mean of ``values`` (N,) with a bootstrap interval that draws whole groups (N,), not images.

    Images of one patient say less than as many of different ones: drawing patients keeps that in the interval. With
    one image a group and values of 0 and 1, Wilson's interval is taken, which holds at 0 and 1 too.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) == len(values) and np.isin(values, (0, 1)).all():
        return wilson(int(values.sum()), len(values))
    sums = np.bincount(group, values)
    counts = np.bincount(group)
    drawn = np.random.default_rng(seed).integers(0, len(names), (NUM_BOOTSTRAPS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(np.mean(values)), float(low), float(high))
