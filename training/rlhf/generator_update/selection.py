"""Which synthetic images a generator update learns from: the best of each prompt group, an equal share of each.

Pure numpy. A threshold for all groups alike would teach the generator what it does well already and let it forget the
rest (mode collapse onto easy prompts); a share of each group keeps the mixture of prompts as it was drawn.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_GROUP = 4  # images that a prompt group needs; smaller ones are joined by kind


@dataclass(frozen=True)
class Scored:
    """What selector and policy said of one image."""

    prompt: str
    serving: float  # selector: mean - 1 std, 0..1
    alignment: float  # policy, 0..1

    @property
    def score(self) -> float:
        """The strictest threshold under which the image would still be served: both scores must reach it."""
        return min(self.serving, self.alignment)


def prompt_groups(labels: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """The group of each image: its label, or its kind where fewer than MIN_GROUP images share the label."""
    counts = Counter(labels)
    return [
        label if counts[label] >= MIN_GROUP else f"other {kind}" for label, kind in zip(labels, kinds, strict=True)
    ]


def weigh(scores: Sequence[float], groups: Sequence[str], *, share: float, with_unwanted: bool) -> np.ndarray:
    """The weight of each image, (N,): 1 for the best ``share`` of each group, 0 for all others.

    ``with_unwanted``: -1 for the worst ``share`` of each group that is not among the best.
    """
    weights = np.zeros(len(scores), dtype=int)
    if with_unwanted:
        weights[choose([-score for score in scores], groups, share=share)] = -1
    weights[choose(scores, groups, share=share)] = 1
    return weights


def choose(scores: Sequence[float], groups: Sequence[str], *, share: float) -> np.ndarray:
    """Positions, ascending, of the ``share`` of each group with the highest scores; at least one of each group.

    The quota of a group of n is ceil(share n) capped at the quota of a group of average size, so that a prompt
    that was drawn often does not take more of the training than the others. Ties go to the earlier image.
    """
    if not 0 < share <= 1:
        raise ValueError(f"The share is {share}; it must lie above 0 and up to 1.")
    values, names = np.asarray(scores, dtype=float), np.asarray(groups)
    if len(values) != len(names) or not len(values):
        raise ValueError(f"{len(values)} scores and {len(names)} groups: give one of each for every image.")
    cap = math.ceil(share * len(values) / len(set(groups)))
    chosen = []
    for name in sorted(set(groups)):
        members = np.flatnonzero(names == name)
        best_first = members[np.argsort(-values[members], kind="stable")]
        chosen += best_first[: min(cap, math.ceil(share * len(members)))].tolist()
    return np.array(sorted(chosen))
