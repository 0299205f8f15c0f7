"""What images are sorted by (phantom class, shared caption or kind), and splits that keep groups whole."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.evaluation.images import ImageSet, finest_label

MIN_PER_LABEL = 5  # real images that a label needs
MIN_SHARE = 0.8  # of the real images that must carry such a label
RARE = ""  # stands for a label with too few real images


@dataclass(frozen=True)
class Labelling:
    """A label for every image of both sets."""

    level: str  # "finding" (phantom class), "caption" or "kind"
    names: tuple[str, ...]  # the labels in use, sorted
    real: tuple[str, ...]  # (M,) label, RARE where too few share it
    generated: tuple[str, ...]  # (N,) RARE where the real images do not have it


def choose_labels(real: ImageSet, generated: ImageSet) -> Labelling:
    """The finest of caption (for phantoms: class) and kind that 80 % of the real images share with four others."""
    fine = [finest_label(caption) for caption in real.captions]
    counts = Counter(fine)
    kept = {name for name, count in counts.items() if count >= MIN_PER_LABEL}
    if len(kept) > 1 and sum(counts[name] for name in kept) >= MIN_SHARE * len(real):
        level = "finding" if real.are_phantoms else "caption"
        return _labelling(level, kept, fine, [finest_label(caption) for caption in generated.captions])
    counts = Counter(real.kinds)
    kept = {name for name, count in counts.items() if count >= MIN_PER_LABEL}
    return _labelling("kind", kept, real.kinds, generated.kinds)


def _labelling(level: str, kept: set[str], real: Sequence[str], generated: Sequence[str]) -> Labelling:
    keep = [tuple(name if name in kept else RARE for name in labels) for labels in (real, generated)]
    return Labelling(level, tuple(sorted(kept)), *keep)


def numbers(labels: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Position in ``names`` of each label, -1 where it is not there."""
    place = {name: number for number, name in enumerate(names)}
    return np.array([place.get(label, -1) for label in labels])


def fold_of_each(groups: Sequence[str], labels: Sequence[str], num_folds: int, *, seed: int) -> np.ndarray:
    """Fold (M,) of every image: groups whole, labels spread, folds of like size.

    Groups are dealt out label by label, in random order, each to the fold that is smallest so far.
    """
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    shuffled = [list(members)[i] for i in rng.permutation(len(members))]
    shuffled.sort(key=lambda group: labels[members[group][0]])  # stable: random within a label
    folds, sizes = np.empty(len(groups), dtype=int), np.zeros(num_folds)
    for group in shuffled:
        smallest = rng.choice(np.flatnonzero(sizes == sizes.min()))
        folds[members[group]] = smallest
        sizes[smallest] += len(members[group])
    return folds
