"""Distribution figures by one protocol: the same number of images against the same halves of the real ones.

The real images are cut into halves A and B, groups whole, again and again. Each time m images of a set are held
against m of B: generated ones (the figure), A (real against real: the floor) and A degraded (the ladder). Sizes are
equal throughout, because coverage and recall, and the spread of every figure, depend on them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.evaluation.degradation import DEGRADATIONS, Ladder
from training.evaluation.distances import (
    GaussianKernel,
    polynomial_kernel,
    squared_mmd,
    squared_mmd_interval,
)
from training.evaluation.figures import HIGHER, LOWER, Figure
from training.evaluation.images import EvaluationError
from training.evaluation.intervals import CONFIDENCE, Interval
from training.evaluation.labels import fold_of_each
from training.evaluation.neighbours import neighbourhoods

NUM_SPLITS = 20
_SUBSETS = "2.5 to 97.5 % of the subsets"
_JACKKNIFE = "jackknife over groups of real and seeds of generated images"
_NEIGHBOUR_FIGURES = ("density", "coverage", "precision", "recall")

Measure = Callable[[np.ndarray, np.ndarray], dict[str, float]]  # real (m, D), other (m, D) -> values by name


@dataclass(frozen=True)
class FeatureSets:
    """Features of one encoder."""

    encoder: str
    real: np.ndarray  # (M, D)
    generated: np.ndarray  # (N, D)
    real_groups: np.ndarray  # (M,) names
    generated_groups: np.ndarray  # (N,) names
    degraded: Mapping[str, Sequence[np.ndarray]]  # name of a degradation -> (M, D) for each strength


@dataclass(frozen=True)
class Split:
    """Positions of equal number m."""

    half_a: np.ndarray  # of real images
    half_b: np.ndarray  # of real images, no group in common with half_a
    generated: np.ndarray


def draw_splits(sets: FeatureSets, *, seed: int) -> list[Split]:
    splits = []
    for number in range(NUM_SPLITS):
        # Not spread by label: halves made alike would push the unbiased estimates below zero.
        half = fold_of_each(sets.real_groups, [""] * len(sets.real), 2, seed=seed * NUM_SPLITS + number)
        sides = [np.flatnonzero(half == 0), np.flatnonzero(half == 1)]
        size = min(len(sides[0]), len(sides[1]), len(sets.generated))
        rng = np.random.default_rng([seed, 1, number])
        drawn = [rng.choice(positions, size, replace=False) for positions in (*sides, np.arange(len(sets.generated)))]
        splits.append(Split(*drawn))
    return splits


def distribution_figures(sets: FeatureSets, *, k: int, seed: int) -> list[Figure]:
    """KID, MMD, density, coverage, precision and recall with floor and ladders; raises EvaluationError."""
    splits = draw_splits(sets, seed=seed)
    size = len(splits[0].half_a)
    if size <= k + 1:
        raise EvaluationError(
            f"Halves of {size} images are too few for {k} neighbours. Give more images, or a smaller --k."
        )
    kernels = {"KID": polynomial_kernel, "MMD": GaussianKernel.of_median(sets.real)}

    def measure(real: np.ndarray, other: np.ndarray) -> dict[str, float]:
        values = {name: squared_mmd(real, other, kernel) for name, kernel in kernels.items()}
        found = neighbourhoods(real, other, k)
        return values | {name: getattr(found, name) for name in _NEIGHBOUR_FIGURES}

    runs = _Runs.of(sets, splits, measure)
    figures = [_mmd_figure(name, kernel, sets, runs, size) for name, kernel in kernels.items()]
    return [*figures, *(_neighbour_figure(name, sets, runs, size, k) for name in _NEIGHBOUR_FIGURES)]


@dataclass(frozen=True)
class _Runs:
    """Values of every split, by name of the figure."""

    generated: list[dict[str, float]]
    floor: list[dict[str, float]]
    rungs: dict[str, list[list[dict[str, float]]]]  # degradation -> strength -> split

    @classmethod
    def of(cls, sets: FeatureSets, splits: Sequence[Split], measure: Measure) -> "_Runs":
        def run(features: np.ndarray, side: str) -> list[dict[str, float]]:
            return [measure(sets.real[split.half_b], features[getattr(split, side)]) for split in splits]

        return cls(
            generated=run(sets.generated, "generated"),
            floor=run(sets.real, "half_a"),
            rungs={name: [run(rung, "half_a") for rung in rungs] for name, rungs in sets.degraded.items()},
        )

    def ladders(self, name: str, *, lower_is_better: bool) -> tuple[Ladder, ...]:
        strengths = {degradation.name: degradation.strengths for degradation in DEGRADATIONS}
        floor = _spread(self.floor, name)
        return tuple(
            Ladder(
                degradation,
                (0.0, *strengths[degradation]),
                (floor.value, *(_mean(rung, name) for rung in rungs)),
                lower_is_better,
                floor.high if lower_is_better else floor.low,
            )
            for degradation, rungs in self.rungs.items()
        )


def _mean(values: Sequence[dict[str, float]], name: str) -> float:
    return float(np.mean([value[name] for value in values]))


def _spread(values: Sequence[dict[str, float]], name: str) -> Interval:
    numbers = [value[name] for value in values]
    low, high = np.quantile(numbers, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(np.mean(numbers)), float(low), float(high))


def _subsets(runs: _Runs, name: str, size: int) -> dict:
    def summary(values: list[dict[str, float]]) -> dict[str, float]:
        numbers = [value[name] for value in values]
        return {"mean": float(np.mean(numbers)), "std": float(np.std(numbers, ddof=1))}

    return {
        "subset_size": size,
        "num_subsets": len(runs.generated),
        "subsets": summary(runs.generated),
        "floor_subsets": summary(runs.floor),
    }


def _mmd_figure(name: str, kernel: Callable, sets: FeatureSets, runs: _Runs, size: int) -> Figure:
    details = _subsets(runs, name, size) | {"estimator": "unbiased MMD^2 of all images"}
    if isinstance(kernel, GaussianKernel):
        details["bandwidth"] = kernel.bandwidth
    return Figure(
        name=f"{name} ({sets.encoder})",
        better=LOWER,
        value=squared_mmd_interval(sets.generated, sets.real, kernel, sets.generated_groups, sets.real_groups),
        interval_method=_JACKKNIFE,
        real=_spread(runs.floor, name),
        num_images=len(sets.generated),
        ladders=runs.ladders(name, lower_is_better=True),
        details=details,
    )


def _neighbour_figure(name: str, sets: FeatureSets, runs: _Runs, size: int, k: int) -> Figure:
    # Precision and recall are shown without a ladder: a blurred image may well lie inside a real ball.
    has_ladder = name in ("density", "coverage")
    return Figure(
        name=f"{name} ({sets.encoder}, k={k})",
        better=HIGHER,
        value=_spread(runs.generated, name),
        interval_method=_SUBSETS,
        real=_spread(runs.floor, name),
        num_images=len(sets.generated),
        ladders=runs.ladders(name, lower_is_better=False) if has_ladder else (),
        details=_subsets(runs, name, size) | {"k": k},
    )
