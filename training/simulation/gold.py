"""Phantoms whose grade is known because their defects were planted. Pure.

The gold function: an image with the finding its caption names and a combined defect severity s (0 untouched, 1
unusable; see generation.diffusion.phantoms.defects) is

    excellent (3) for s <= 0.15,   acceptable (2) for s <= 0.65,   poor (1) above.

Drawn are severities away from these borders, so that no gold grade is a matter of opinion.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from generation.diffusion.phantoms import DEFECTS, FINDINGS, Phantom, PhantomClass, draw
from medsyn.modalities import KINDS

MOST_EXCELLENT, MOST_ACCEPTABLE = 0.15, 0.65  # severity up to which an image has that grade
_DRAWN = {3: (0.0, 0.0), 2: (0.3, 0.5), 1: (0.8, 1.0)}  # grade -> severities that are drawn
_STREAM = 6  # sets these choices apart from the phantoms' own streams (0 to 5)


@dataclass(frozen=True)
class GoldPhantom:
    """A phantom and its known grade."""

    phantom: Phantom
    grade: int  # 1 to 3

    @property
    def rationale(self) -> str:
        """Why it has that grade, for the training round."""
        if not self.phantom.defects:
            return "Nothing was planted in this image: it is as good as phantoms get."
        planted = ", ".join(f"{name.replace('_', ' ')} of severity {s:.2f}" for name, s in self.phantom.defects)
        return f"Planted: {planted} (0 none, 1 unusable)."


def gold_grade(severity: float) -> int:
    """The grade, 1 to 3, of a phantom with its finding and defects of that combined severity, 0 to 1."""
    if not 0 <= severity <= 1:
        raise ValueError(f"Severity {severity} is outside 0..1.")
    return 3 if severity <= MOST_EXCELLENT else 2 if severity <= MOST_ACCEPTABLE else 1


def draw_gold(num_per_kind: int, *, seed: int, size: int = 128) -> Iterator[GoldPhantom]:
    """``num_per_kind`` phantoms of each of the six kinds, the three grades in turn; the same for the same seed."""
    for number, kind in enumerate(KINDS):
        classes = [each for each in FINDINGS if each.kind == kind]
        for index in range(num_per_kind):
            grade = 1 + (index + number) % 3
            yield _draw_one(classes, grade, seed + number * num_per_kind + index, size)


def _draw_one(classes: list[PhantomClass], grade: int, seed: int, size: int) -> GoldPhantom:
    rng = np.random.default_rng([seed, _STREAM])
    phantom_class = classes[rng.integers(len(classes))]
    low, high = _DRAWN[grade]
    defects = [(str(rng.choice(DEFECTS)), round(float(rng.uniform(low, high)), 2))] if high else []
    phantom = draw(phantom_class, seed=seed, size=size, defects=defects)
    return GoldPhantom(phantom, gold_grade(phantom.severity))
