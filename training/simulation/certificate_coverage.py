"""How often the promise of a certificate holds: in a simulated world, and on a pool of scored images whose truth is
known [pure].

    python -m training.simulation.certificate_coverage                    the table of docs/certificates.md
    python -m training.simulation.certificate_coverage --pool pool.npz    arrays score, poor (and gold) of one pool

In the simulated world scores are normal and shifted down for poor images, so that the score's AUC for "poor" and the
base rate are as asked, and the poor share above any threshold is known without drawing.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from scipy.special import ndtr
from scipy.stats import norm

from generation.certificate import Promise, calibrate
from medsyn.percent import percent

AUCS, BASES, ALPHAS = (0.85, 0.92), (0.15, 0.30), (0.05, 0.10)
NUMBERS = (100, 200, 500, 1000, 2000)  # rated images
FEWEST_FRESH = 2000  # images that a promise is looked at with


@dataclass(frozen=True)
class Coverage:
    """What many repeats of a calibration came to."""

    num_repeats: int
    num_refused: int
    num_broken: int  # certified, and more than alpha of what is served is poor
    mean_yield: float  # share of images served, refusals counting as none
    mean_risk: float  # poor share among those served, over the repeats that certified; NaN: none did

    @property
    def broken_share(self) -> float:
        """Of all repeats: what delta bounds."""
        return self.num_broken / self.num_repeats

    @property
    def refused_share(self) -> float:
        return self.num_refused / self.num_repeats


class NormalWorld:
    """Scores of images that are poor with probability ``base``, and tell poor ones apart with AUC ``auc``."""

    def __init__(self, auc: float, base: float):
        self._base, self._gap = base, math.sqrt(2) * norm.ppf(auc)  # two normals a gap apart

    def draw(self, number: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(number,) scores and whether each image is poor."""
        is_poor = random.random(number) < self._base
        return random.standard_normal(number) - self._gap * is_poor, is_poor

    def share(self, threshold: float) -> float:
        """P(score >= threshold)."""
        return float(self._base * ndtr(-threshold - self._gap) + (1 - self._base) * ndtr(-threshold))

    def risk(self, threshold: float) -> float:
        """P(poor | score >= threshold)."""
        return float(self._base * ndtr(-threshold - self._gap)) / self.share(threshold)

    def best_yield(self, alpha: float) -> float:
        """The largest share that can be served with at most ``alpha`` poor, were the truth known."""
        thresholds = np.linspace(-6, 6, 4001)
        return max((self.share(each) for each in thresholds if self.risk(each) <= alpha), default=0.0)


def simulate(
    world: NormalWorld,
    *,
    num_images: int,
    promise: Promise,
    num_repeats: int = 1000,
    num_unrated: int = 4000,
    seed: int = 0,
) -> Coverage:
    """Calibrate ``num_repeats`` times on new draws of the world; broken is what its own formula says."""
    random = np.random.default_rng(seed)

    def outcomes() -> Iterator[tuple[float, float] | None]:
        for _ in range(num_repeats):
            scores, is_poor = world.draw(num_images, random)
            unrated, _ = world.draw(num_unrated, random)
            found = calibrate(scores, is_poor, unrated_scores=unrated, promise=promise)
            yield (world.share(found.threshold), world.risk(found.threshold)) if found.is_certified else None

    return _coverage(outcomes(), promise.alpha)


def repeat_draw(
    scores: np.ndarray,
    is_poor: np.ndarray,
    *,
    num_images: int,
    promise: Promise,
    is_truly_poor: np.ndarray | None = None,
    num_repeats: int = 100,
    num_unrated: int = 500,
    seed: int = 0,
) -> Coverage:
    """Calibrate ``num_repeats`` times on random splits of one pool, and look at the fresh rest of it.

    scores, is_poor: (P,) certified score and panel's verdict. is_truly_poor: (P,) what the fresh images are judged
    by, the gold function; None: the panel. Each split has ``num_images`` rated ones, ``num_unrated`` for the
    thresholds, and all others fresh, at least 2000. A promise is broken where more than alpha of the fresh images
    served are poor. Raises ValueError where the pool is too small or the arrays do not fit.
    """
    truth = is_poor if is_truly_poor is None else is_truly_poor
    if not scores.shape == is_poor.shape == truth.shape or scores.ndim != 1:
        raise ValueError(f"The arrays are {scores.shape}, {is_poor.shape}, {truth.shape}; give one entry an image.")
    fresh_from = num_images + num_unrated
    if len(scores) - fresh_from < FEWEST_FRESH:
        raise ValueError(
            f"The pool has {len(scores)} images; {num_images} rated, {num_unrated} unrated and {FEWEST_FRESH} fresh "
            "ones are needed. Draw more."
        )
    random = np.random.default_rng(seed)

    def outcomes() -> Iterator[tuple[float, float] | None]:
        for _ in range(num_repeats):
            rated, unrated, fresh = np.split(random.permutation(len(scores)), [num_images, fresh_from])
            found = calibrate(scores[rated], is_poor[rated], unrated_scores=scores[unrated], promise=promise)
            if not found.is_certified:
                yield None
                continue
            served = fresh[scores[fresh] >= found.threshold]
            yield len(served) / len(fresh), float(truth[served].mean()) if len(served) else 0.0

    return _coverage(outcomes(), promise.alpha)


def _coverage(outcomes: Iterator[tuple[float, float] | None], alpha: float) -> Coverage:
    """outcomes: share served and poor share among them, None where it was refused."""
    found = list(outcomes)
    certified = np.array([each for each in found if each is not None]).reshape(-1, 2)
    return Coverage(
        num_repeats=len(found),
        num_refused=len(found) - len(certified),
        num_broken=int((certified[:, 1] > alpha).sum()),
        mean_yield=float(certified[:, 0].sum() / len(found)),
        mean_risk=float(certified[:, 1].mean()) if len(certified) else math.nan,
    )


def table(
    *,
    num_repeats: int,
    num_unrated: int = 4000,
    numbers: Sequence[int] = NUMBERS,
    seen: Callable[[tuple[float, float, float], int, Coverage], None] = lambda *_: None,
) -> Iterator[str]:
    """Lines of the table: every AUC, base rate and alpha against the number of rated images.

    seen: called with ((auc, base, alpha), number, coverage) of each cell.
    """
    yield f"| AUC | base | alpha | best | {' | '.join(f'n = {number}' for number in numbers)} |"
    yield "|---|---|---|---|" + "---|" * len(numbers)
    for auc, base, alpha in product(AUCS, BASES, ALPHAS):
        world, promise = NormalWorld(auc, base), Promise(alpha=alpha)
        cells = []
        for number in numbers:
            sizes = {"num_images": number, "num_repeats": num_repeats, "num_unrated": num_unrated}
            found = simulate(world, promise=promise, seed=number, **sizes)
            seen((auc, base, alpha), number, found)
            broken, refused = percent(found.broken_share, 1), percent(found.refused_share, 0)
            cells.append(f"{found.mean_yield:.2f}, {broken}, {refused}")
        yield f"| {auc:.2f} | {base:.2f} | {alpha:.2f} | {world.best_yield(alpha):.2f} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How often the promise of a certificate holds.")
    parser.add_argument("--repeats", type=int, help="calibrations per cell (1000), or splits of the pool (100)")
    parser.add_argument("--pool", type=Path, help="npz with score and poor (P,), and gold (P,) where it is known")
    parser.add_argument("--images", type=int, default=300, help="with --pool: rated images")
    parser.add_argument("--alpha", type=float, default=0.10, help="with --pool")
    parser.add_argument("--unrated", type=int, help="images behind the thresholds (4000; with --pool 500)")
    given = parser.parse_args(arguments)
    if given.pool is None:
        lines = table(num_repeats=given.repeats or 1000, num_unrated=given.unrated or 4000)
    else:
        lines = _pool_lines(given)
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _pool_lines(given: argparse.Namespace) -> Iterator[str]:
    with np.load(given.pool, allow_pickle=False) as arrays:
        gold = arrays["gold"].astype(bool) if "gold" in arrays else None
        found = repeat_draw(
            arrays["score"].astype(float),
            arrays["poor"].astype(bool),
            num_images=given.images,
            promise=Promise(alpha=given.alpha),
            is_truly_poor=gold,
            num_repeats=given.repeats or 100,
            num_unrated=given.unrated or 500,
        )
    yield (
        f"{found.num_repeats} draws of {given.images} rated images: {found.num_refused} refused, {found.num_broken} "
        f"broken ({percent(found.broken_share, 1)}), mean yield {found.mean_yield:.2f}, mean poor "
        f"share {found.mean_risk:.3f}"
    )


if __name__ == "__main__":
    main()
