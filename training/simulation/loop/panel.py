"""The truth of a simulated loop and the experts who judge by it: one scale for all rounds. Pure.

Poor is what lies below the 30 % quantile of the gold quality of the unfiltered generator's images of round 0,
excellent what lies above the 70 % quantile. Experts place an image among those same images. So neither truth nor
panel moves with what is served, and an improvement can show.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from training.simulation.experts import PESSIMISTIC_STD, THRESHOLD_QUANTILES, Expert, draw_expert, rate_among
from training.simulation.loop.settings import PANELS

_PESSIMISTIC = "pessimistic"
_PANEL_STREAM, _GRADE_STREAM = 21, 22  # set these choices apart from the phantoms' streams


@dataclass(frozen=True, eq=False)
class Truth:
    """The gold scale."""

    reference: np.ndarray  # (M,) gold quality of round 0's unfiltered images

    def is_poor(self, quality: np.ndarray) -> np.ndarray:
        """(N,) bool"""
        return quality < np.quantile(self.reference, THRESHOLD_QUANTILES[0])

    def is_excellent(self, quality: np.ndarray) -> np.ndarray:
        """(N,) bool"""
        return quality > np.quantile(self.reference, THRESHOLD_QUANTILES[1])


@dataclass(frozen=True, eq=False)
class Panel:
    """The experts of one seed."""

    experts: tuple[Expert, ...]
    truth: Truth
    seed: int

    @classmethod
    def draw(cls, name: str, truth: Truth, *, seed: int) -> "Panel":
        """``name``: of PANELS."""
        rng = np.random.default_rng([seed, _PANEL_STREAM])
        noise_std = PESSIMISTIC_STD if name == _PESSIMISTIC else None
        drawn = [draw_expert(level, rng) for level in PANELS[name]]
        return cls(tuple(Expert(each.level, each.bias, noise_std) for each in drawn), truth, seed)

    def grade(self, expert: int, quality: float, *, image: str, showing: int) -> int:
        """What an expert (by position) says of an image, 1 to 3, at the first or second showing.

        The same whenever and in whichever study the expert sees that image: arms that have the same image rated by
        the same expert get the same grade.
        """
        key = hashlib.sha256(f"{image}/{showing}".encode()).digest()
        rng = np.random.default_rng([self.seed, _GRADE_STREAM, expert, int.from_bytes(key[:8], "big")])
        grades = rate_among(np.array([quality]), self.truth.reference, self.experts[expert], rng)
        return int(grades[0])
