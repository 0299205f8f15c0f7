"""A pool of phantoms whose quality is known to nobody but the benchmark: defects planted, prompts partly wrong. Pure.

It stands for the images of an imperfect generator. The gold quality of image x under prompt c is

    q(x, c) = -[1 - (1 - s(x)) (1 - MISMATCH_SEVERITY m(x, c))]

with s the combined severity of the planted defects and m = 1 where the prompt asks for another finding than the one
drawn. Gold "poor" is the lower part of the pool by q, as the experts' lower threshold says. No learner sees q.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from generation.diffusion.phantoms import DEFECTS, FINDINGS, combined_severity, draw, other_caption
from generation.diffusion.phantoms.captions import caption
from training.simulation.experts import THRESHOLD_QUANTILES, Expert, draw_expert, rate

MISMATCH_SEVERITY = 0.85  # what a wrong finding costs, as a defect's severity
DEFAULT_LEVELS = (1, 1, 1, 2, 2, 3)  # expertise of the default panel
_STREAM = 7  # sets these choices apart from the phantoms' own streams (0 to 6)


@dataclass(frozen=True, eq=False)
class PhantomPool:
    pixels: np.ndarray  # (N, S, S, 3) uint8
    prompts: tuple[str, ...]  # (N,) what the image is said to show
    quality: np.ndarray  # (N,) q in [-1, 0]
    is_mismatched: np.ndarray  # (N,) bool: drawn with another finding than its prompt names

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def is_poor(self) -> np.ndarray:
        """(N,) bool: among the lower 30 % by gold quality."""
        return self.quality < np.quantile(self.quality, THRESHOLD_QUANTILES[0])

    def subset(self, index: np.ndarray) -> "PhantomPool":
        """The images at ``index``; note that `is_poor` is relative to the pool it is asked of."""
        prompts = tuple(self.prompts[i] for i in index)
        return PhantomPool(self.pixels[index], prompts, self.quality[index], self.is_mismatched[index])


def draw_pool(num_images: int, *, seed: int, mismatch_rate: float = 0.0, size: int = 128) -> PhantomPool:
    """``num_images`` phantoms of all kinds, seeds ``seed`` onwards; the same for the same seed.

    One in five is clean; the others have one or two defects of severity up to 1, so quality is spread evenly and
    most images are neither perfect nor hopeless. With chance ``mismatch_rate`` the prompt names another finding.
    """
    rows = [_draw_one(seed + number, mismatch_rate, size) for number in range(num_images)]
    pixels, prompts, quality, mismatched = zip(*rows, strict=True)
    return PhantomPool(np.stack(pixels), prompts, np.array(quality), np.array(mismatched))


def _draw_one(seed: int, mismatch_rate: float, size: int) -> tuple[np.ndarray, str, float, bool]:
    rng = np.random.default_rng([seed, _STREAM])
    phantom_class = FINDINGS[rng.integers(len(FINDINGS))]
    number = int(rng.choice((0, 1, 2), p=(0.2, 0.5, 0.3)))
    names = rng.choice(DEFECTS, size=number, replace=False)
    defects = [(str(name), float(rng.uniform(0.0, 1.0))) for name in names]
    phantom = draw(phantom_class, seed=seed, size=size, defects=defects)
    is_mismatched = bool(rng.random() < mismatch_rate)
    prompt = other_caption(phantom_class, seed) if is_mismatched else caption(phantom_class, seed)
    severity = combined_severity([phantom.severity, MISMATCH_SEVERITY * is_mismatched])
    return phantom.pixels, prompt, -severity, is_mismatched


@dataclass(frozen=True, eq=False)
class PanelRatings:
    """R ratings of a pool."""

    image: np.ndarray  # (R,) position in the pool
    rater: np.ndarray  # (R,) position in the panel
    level: np.ndarray  # (R,) expertise, 1 to 3
    grade: np.ndarray  # (R,) 1 to 3


def draw_panel(*, seed: int, levels: Sequence[int] = DEFAULT_LEVELS) -> list[Expert]:
    """Experts of these levels with biases of their own."""
    rng = np.random.default_rng([seed, _STREAM])
    return [draw_expert(level, rng) for level in levels]


def rate_pool(pool: PhantomPool, panel: Sequence[Expert], *, ratings_per_image: int, seed: int) -> PanelRatings:
    """``ratings_per_image`` different experts, drawn evenly, rate every image of the pool."""
    rng = np.random.default_rng([seed, _STREAM])
    grades = np.stack([rate(pool.quality, expert, rng) for expert in panel])  # (E, N)
    raters = np.stack([rng.permutation(len(panel))[:ratings_per_image] for _ in range(len(pool))])  # (N, r)
    image = np.repeat(np.arange(len(pool)), ratings_per_image)
    rater = raters.ravel()
    levels = np.array([expert.level for expert in panel])
    return PanelRatings(image, rater, levels[rater], grades[rater, image])
