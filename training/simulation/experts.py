"""Simulated experts: ratings from a gold quality that no learner sees.

A rater r of level e gives image x the grade

    z = q(x) + b_r + s_e * eps,    rating = 1 + [z > t_1] + [z > t_2]

with eps standard normal, b_r ~ N(0, BIAS_STD^2), q as normal scores over the images of the study and t_1, t_2 their
30 % and 70 % quantiles; with probability ``lapse`` the rating is uniform. Only the order of the images counts: a
rater's noise then means the same whatever the gold quality's own scale, and a few very bad images do not make all
others alike. An image of known grade has the q in the middle of its grade's band, whatever it looks like.
Never evidence about clinicians.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

BIAS_STD = 0.3  # of a rater's leniency, in standard deviations of q
THRESHOLD_QUANTILES = (0.30, 0.70)


@dataclass(frozen=True)
class Skill:
    noise_std: float  # in standard deviations of q
    lapse: float  # probability of a uniform rating


SKILL_BY_LEVEL = {1: Skill(1.2, 0.08), 2: Skill(0.75, 0.04), 3: Skill(0.4, 0.02)}
_ACTIVE_MS = (4000, 0.4)  # an answer's time: median, and standard deviation of its logarithm
PESSIMISTIC_STD = 1.5  # noise of everybody in the pessimistic panel: kappa of about 0.13


@dataclass(frozen=True)
class Expert:
    level: int  # 1 to 3
    bias: float  # added to every quality, in standard deviations of q
    noise_std: float | None = None  # in standard deviations of q; None: that of the level

    @property
    def skill(self) -> Skill:
        usual = SKILL_BY_LEVEL[self.level]
        return usual if self.noise_std is None else Skill(self.noise_std, usual.lapse)


def draw_expert(level: int, rng: np.random.Generator) -> Expert:
    if level not in SKILL_BY_LEVEL:
        raise ValueError(f"Expert level {level!r} is not one of 1, 2, 3.")
    return Expert(level, float(rng.normal(0, BIAS_STD)))


def normal_scores(quality: np.ndarray) -> np.ndarray:
    """Gold quality (N,) -> Phi^-1((rank - 1/2) / N), equal qualities sharing their mean rank (Blom 1958)."""
    return norm.ppf((rankdata(quality) - 0.5) / len(quality))


def rate(quality: np.ndarray, expert: Expert, rng: np.random.Generator) -> np.ndarray:
    """Grades (N,) in 1..3 for the gold qualities (N,) of one study, from one expert."""
    q = normal_scores(np.asarray(quality, dtype=float))
    return _graded(q, np.quantile(q, THRESHOLD_QUANTILES), expert, rng)


def scores_among(quality: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Gold quality (N,) as normal scores among ``reference`` (M,), which does not depend on what else is judged:
    Phi^-1((#lower + #equal / 2 + 1/2) / (M + 1))."""
    ordered = np.sort(np.asarray(reference, dtype=float))
    lower, upper = (np.searchsorted(ordered, quality, side) for side in ("left", "right"))
    return norm.ppf(((lower + upper) / 2 + 0.5) / (len(ordered) + 1))


def rate_among(quality: np.ndarray, reference: np.ndarray, expert: Expert, rng: np.random.Generator) -> np.ndarray:
    """Grades (N,) in 1..3 on the scale of ``reference`` (M,): better images than those get better grades."""
    return _graded(scores_among(quality, reference), norm.ppf(THRESHOLD_QUANTILES), expert, rng)


def rate_known(grades: np.ndarray, expert: Expert, rng: np.random.Generator) -> np.ndarray:
    """Grades (N,) in 1..3 from one expert for images whose grade (N,) is known."""
    below, above = THRESHOLD_QUANTILES
    middles = norm.ppf([below / 2, (below + above) / 2, (1 + above) / 2])
    q = middles[np.asarray(grades, dtype=int) - 1]
    return _graded(q, norm.ppf(THRESHOLD_QUANTILES), expert, rng)


def answering_ms(rng: np.random.Generator) -> int:
    """How long one answer takes, in milliseconds: log-normal."""
    median, spread = _ACTIVE_MS
    return round(median * rng.lognormal(0, spread))


def _graded(q: np.ndarray, thresholds: np.ndarray, expert: Expert, rng: np.random.Generator) -> np.ndarray:
    low, high = thresholds
    z = q + expert.bias + expert.skill.noise_std * rng.standard_normal(q.shape)
    grades = 1 + (z > low).astype(int) + (z > high).astype(int)
    lapsed = rng.random(q.shape) < expert.skill.lapse
    return np.where(lapsed, rng.integers(1, 4, q.shape), grades)
