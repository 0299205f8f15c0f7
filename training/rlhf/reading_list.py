"""Which images to rate next: part drawn at random, part chosen by where a selector's heads disagree. numpy only.

Of a batch of N images from a pool:

    random      round(random_share N), a uniform draw from the whole pool: what it says of the pool holds for the pool
    model       of the others, those with the greatest BALD (Houlsby et al. 2011), the mutual information of the
                verdict "poor" and the head that gives it,

                    I = H(mean_k p_k) - mean_k H(p_k),    H(p) = -p ln p - (1 - p) ln(1 - p),

                restricted to the share ``shortlist_share`` of each kind with the greatest I and spread by greedy
                k-centre (Gonzalez 1985; Sener & Savarese 2018): each next image is the one farthest from those chosen
    exploring   round(exploring_share x the model's picks), a uniform draw from what is left: heads that agree may
                agree in error

The model's picks have the kinds of the pool in proportion, by largest remainder. Everything follows from the inputs
and a seed, in the order in which the pool is given.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ratings.reading_list import proportional_quotas

RANDOM_SHARE = 0.4


class Reason(StrEnum):
    RANDOM = "random"
    MODEL = "model"
    EXPLORING = "exploring"


@dataclass(frozen=True)
class Mix:
    """What a batch is made of."""

    num_images: int  # at least 1
    random_share: float = RANDOM_SHARE  # of the batch, [0, 1]
    exploring_share: float = 0.1  # of the model's part, [0, 1]
    shortlist_share: float = 0.2  # of each kind: among how many images the model's picks are spread, (0, 1]

    def __post_init__(self):
        if self.num_images < 1:
            raise ValueError(f"num_images is {self.num_images}; a batch has at least 1 image.")
        for name in ("random_share", "exploring_share", "shortlist_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1.")
        if not self.shortlist_share:
            raise ValueError("shortlist_share is 0; the model would have nothing to choose from.")

    @property
    def num_random(self) -> int:
        return round(self.random_share * self.num_images)

    @property
    def num_exploring(self) -> int:
        return round(self.exploring_share * (self.num_images - self.num_random))


@dataclass(frozen=True)
class Pick:
    item: int  # position in the pool
    reason: Reason


def entropy(probability: np.ndarray) -> np.ndarray:
    """H of a yes-or-no verdict in nats, elementwise; 0 at 0 and 1."""
    p = np.clip(np.asarray(probability, dtype=float), 1e-12, 1 - 1e-12)
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def bald(heads: np.ndarray) -> np.ndarray:
    """(N,) mutual information in nats, [0, ln 2], of P(poor) by each head (N, K)."""
    heads = np.asarray(heads, dtype=float)
    return np.maximum(entropy(heads.mean(1)) - entropy(heads).mean(1), 0)


def farthest_first(points: np.ndarray, candidates: np.ndarray, count: int, near: np.ndarray) -> list[int]:
    """``count`` of ``candidates`` (positions), each the farthest from those before it and from ``near`` (positions).

    ``points`` (N, D), Euclidean. With nothing near, the first candidate comes first; of equally far ones the earlier.
    """
    candidates = np.asarray(candidates, dtype=int)
    if count > len(candidates):
        raise ValueError(f"{count} are to be chosen from {len(candidates)}.")
    own = points[candidates]
    distance = np.full(len(candidates), np.inf)
    for item in near:
        distance = np.minimum(distance, np.linalg.norm(own - points[item], axis=1))
    chosen: list[int] = []
    for _ in range(count):
        place = int(np.argmax(distance))
        chosen.append(int(candidates[place]))
        distance = np.minimum(distance, np.linalg.norm(own - own[place], axis=1))
        distance[place] = -np.inf
    return chosen


def standardised(embeddings: np.ndarray) -> np.ndarray:
    """(N, D) each dimension with mean 0 and deviation 1 over the pool; constant ones 0."""
    embeddings = np.asarray(embeddings, dtype=float)
    return (embeddings - embeddings.mean(0)) / np.maximum(embeddings.std(0), 1e-9)


def choose_batch(
    kinds: Sequence[str], information: np.ndarray, embeddings: np.ndarray, *, mix: Mix, seed: int
) -> list[Pick]:
    """The picks of a batch, the random ones first, then the model's by kind, then the exploring ones.

    ``kinds`` (N,): of the pool's images; ``information`` (N,): what a rating of each is expected to tell (`bald`);
    ``embeddings`` (N, D): what an encoder makes of them. The random picks depend on ``seed`` and the pool's length
    alone. Raises ValueError where the pool is too small or the arrays do not fit.
    """
    if not len(kinds) == len(information) == len(embeddings):
        raise ValueError(f"{len(kinds)} kinds, {len(information)} values, {len(embeddings)} embeddings.")
    if len(kinds) < mix.num_images:
        raise ValueError(f"The pool has {len(kinds)} images; {mix.num_images} are to be chosen.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(kinds))
    random, left = order[: mix.num_random], order[mix.num_random :]
    num_model = mix.num_images - mix.num_random - mix.num_exploring
    chosen = _model_picks(np.asarray(kinds), information, standardised(embeddings), left, random, num_model, mix)
    rest = rng.permutation(np.setdiff1d(left, chosen))
    picks = [Pick(int(item), Reason.RANDOM) for item in random]
    picks += [Pick(item, Reason.MODEL) for item in chosen]
    return picks + [Pick(int(item), Reason.EXPLORING) for item in rest[: mix.num_exploring]]


def _model_picks(
    kinds: np.ndarray,
    information: np.ndarray,
    points: np.ndarray,
    left: np.ndarray,
    near: np.ndarray,
    count: int,
    mix: Mix,
) -> list[int]:
    chosen: list[int] = []
    for kind, quota in sorted(proportional_quotas(count, Counter(kinds[left].tolist())).items()):
        own = left[kinds[left] == kind]
        best_first = own[np.lexsort((own, -information[own]))]
        length = max(quota, round(mix.shortlist_share * len(own)))
        chosen += farthest_first(points, best_first[:length], quota, near[kinds[near] == kind])
    return chosen
