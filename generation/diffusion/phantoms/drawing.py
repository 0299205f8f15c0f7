"""Phantoms from a class and a seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from generation.diffusion.phantoms.brain_mri import draw_brain_mri
from generation.diffusion.phantoms.breast_mri import draw_breast_mri
from generation.diffusion.phantoms.captions import caption
from generation.diffusion.phantoms.catalogue import FINDINGS, PhantomClass
from generation.diffusion.phantoms.chest_ct import draw_chest_ct
from generation.diffusion.phantoms.chest_xray import draw_chest_xray
from generation.diffusion.phantoms.defects import DEFECTS, combined_severity, plant_defect
from generation.diffusion.phantoms.fundus import draw_fundus
from generation.diffusion.phantoms.oct import draw_oct
from generation.diffusion.phantoms.shapes import Streams, canvas_of
from medsyn.modalities import BRAIN_MRI, BREAST_MRI, CHEST_CT, CHEST_XRAY, FUNDUS, OCT

_DRAWINGS = {
    FUNDUS: draw_fundus,
    OCT: draw_oct,
    CHEST_XRAY: draw_chest_xray,
    CHEST_CT: draw_chest_ct,
    BRAIN_MRI: draw_brain_mri,
    BREAST_MRI: draw_breast_mri,
}
_SMALLEST_SIZE = 16  # pixels; below it nothing can be told apart
_CHOICE_STREAM = 5  # sets random_phantom's choices apart from the streams that draw (0 to 2) and word (3 and 4)


@dataclass(frozen=True, eq=False)
class Phantom:
    """An image of known content and known faults."""

    pixels: np.ndarray  # uint8 (S, S, 3)
    caption: str  # full prompt, "Kind: ..."
    phantom_class: PhantomClass
    defects: tuple[tuple[str, float], ...]  # (name, severity 0..1) in the order they were planted
    severity: float  # of all defects together, 0 (none) .. 1, see combined_severity


def draw(
    phantom_class: PhantomClass, *, seed: int, size: int = 128, defects: Sequence[tuple[str, float]] = ()
) -> Phantom:
    """Draw a phantom of ``size`` pixels and plant ``defects``, pairs of name and severity.

    The anatomy follows from kind and seed alone: phantoms of one kind and seed differ in the finding only. ``seed``
    must not be negative. Raises ValueError for an unknown defect, a severity outside 0..1 or a size below 16.
    """
    if size < _SMALLEST_SIZE:
        raise ValueError(f"A phantom of {size} pixels shows nothing; ask for at least {_SMALLEST_SIZE}.")
    streams = Streams(*(np.random.default_rng([seed, stream]) for stream in range(3)))
    picture = _DRAWINGS[phantom_class.kind](canvas_of(size), streams, phantom_class)
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    pixels = np.round(picture.clip(0, 1) * 255).astype(np.uint8)
    for name, severity in defects:
        pixels = plant_defect(pixels, name, severity, seed)
    severity = combined_severity([severity for _, severity in defects])
    return Phantom(pixels, caption(phantom_class, seed), phantom_class, tuple(defects), severity)


def random_phantom(seed: int, size: int = 128, defect_rate: float = 0.0) -> Phantom:
    """A phantom of a class drawn evenly from FINDINGS; with chance ``defect_rate`` it has one or two defects."""
    rng = np.random.default_rng([seed, _CHOICE_STREAM])
    phantom_class = FINDINGS[rng.integers(len(FINDINGS))]
    defects = []
    if rng.random() < defect_rate:
        names = rng.choice(DEFECTS, size=rng.integers(1, 3), replace=False)
        defects = [(str(name), float(rng.uniform(0.15, 1.0))) for name in names]
    return draw(phantom_class, seed=seed, size=size, defects=defects)
