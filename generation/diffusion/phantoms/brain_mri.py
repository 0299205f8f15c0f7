"""Axial brain MRI at the level of the ventricles, T1 or T2 weighted: mass, hydrocephalus."""

from dataclasses import dataclass

import numpy as np

from generation.diffusion.phantoms.catalogue import PhantomClass
from generation.diffusion.phantoms.shapes import Canvas, Streams, blend, cloud, ellipse, grain, inside, lump


@dataclass(frozen=True)
class _Contrast:
    """Brightness of the tissues in one weighting."""

    white: float  # white matter
    grey: float  # cortex and deep nuclei
    fluid: float  # cerebrospinal fluid
    scalp: float  # fat of the scalp
    tumour: float  # enhancing rim of a mass
    core: float  # necrosis within it
    oedema: float  # swollen tissue around it


_CONTRASTS = {
    "T1": _Contrast(white=0.70, grey=0.46, fluid=0.10, scalp=0.88, tumour=1.00, core=0.22, oedema=0.36),
    "T2": _Contrast(white=0.34, grey=0.56, fluid=0.96, scalp=0.62, tumour=0.46, core=0.99, oedema=0.88),
}


def _cortex(canvas: Canvas, rng, contrast: _Contrast, radius: np.ndarray) -> np.ndarray:
    """White matter within a folded cortex, with fluid in the sulci; ``radius`` is 1 at the brain's surface."""
    folds = cloud(canvas, rng, 0.12)
    white = inside(radius - 0.78 - 0.09 * folds, 0.03)
    tissue = contrast.grey + (contrast.white - contrast.grey) * white
    near_surface = inside(0.76 - radius, 0.05)
    sulci = np.exp(-((cloud(canvas, rng, 0.11) / 0.30) ** 2)) * near_surface
    tissue = blend(tissue, 0.75 * sulci, contrast.fluid)
    fissure = np.exp(-((canvas.x / 0.018) ** 2)) * inside(0.36 - np.abs(canvas.y), 0.03)
    return blend(tissue, 0.85 * fissure, contrast.fluid)


def _deep_nuclei(canvas: Canvas, tissue: np.ndarray, contrast: _Contrast) -> np.ndarray:
    for side in (-1, 1):
        lentiform = ellipse(canvas, (side * 0.25, -0.08), (0.085, 0.19), -side * 0.25, 0.03)
        thalamus = ellipse(canvas, (side * 0.11, 0.10), (0.085, 0.13), side * 0.3, 0.03)
        tissue = blend(tissue, np.maximum(lentiform, thalamus), contrast.grey)
    return tissue


def _ventricles(canvas: Canvas, rng, is_dilated: bool) -> np.ndarray:
    """Mask of frontal horns, occipital horns and third ventricle."""
    scale = rng.uniform(0.9, 1.1) * (2.3 if is_dilated else 1.0)
    spread, stretch = scale**0.5, scale**0.4
    mask = ellipse(canvas, (0, 0.06), (0.022 * scale, 0.10), 0, 0.02)
    for side in (-1, 1):
        front = ellipse(canvas, (side * 0.10 * spread, -0.20), (0.055 * scale, 0.19 * stretch), -side * 0.30, 0.02)
        back = ellipse(canvas, (side * 0.16 * spread, 0.28), (0.050 * scale, 0.16 * stretch), side * 0.40, 0.02)
        mask = np.maximum(mask, np.maximum(front, back))
    return mask


def _mass(canvas: Canvas, rng, tissue: np.ndarray, contrast: _Contrast, image_side: int) -> np.ndarray:
    """A ring-enhancing tumour with oedema around it."""
    centre = (image_side * rng.uniform(0.31, 0.38), rng.uniform(-0.40, 0.40))
    radius = rng.uniform(0.145, 0.19)
    tissue = blend(tissue, 0.85 * lump(canvas, rng, centre, radius * 1.55, 0.20, 0.05), contrast.oedema)
    tissue = blend(tissue, lump(canvas, rng, centre, radius, 0.12, 0.02), contrast.tumour)
    return blend(tissue, 0.9 * lump(canvas, rng, centre, radius * 0.52, 0.15, 0.03), contrast.core)


def draw_brain_mri(canvas: Canvas, streams: Streams, phantom_class: PhantomClass) -> np.ndarray:
    """(S, S) slice seen from the feet, forehead up, the patient's right on the left of the image."""
    rng, contrast = streams.anatomy, _CONTRASTS[phantom_class.sequence]
    width, height, turn = rng.uniform(0.69, 0.76), rng.uniform(0.86, 0.92), rng.normal(0, 0.03)
    head = ellipse(canvas, (0, 0), (width, height), turn, 0.02)
    skull = ellipse(canvas, (0, 0), (width * 0.935, height * 0.945), turn, 0.015)
    brain = ellipse(canvas, (0, 0), (width * 0.87, height * 0.89), turn, 0.015)
    radius = np.hypot(canvas.x / (width * 0.87), canvas.y / (height * 0.89))
    tissue = _deep_nuclei(canvas, _cortex(canvas, rng, contrast, radius), contrast)
    tissue = blend(tissue, inside(0.965 - radius, 0.02), contrast.fluid)
    tissue = blend(tissue, _ventricles(canvas, rng, phantom_class.finding == "hydrocephalus"), contrast.fluid)
    if phantom_class.finding == "mass":
        image_side = -1 if phantom_class.side == "right" else 1
        tissue = _mass(canvas, streams.finding, tissue, contrast, image_side)
    picture = 0.025 + contrast.scalp * head * (1 - skull)
    picture = blend(picture, brain, tissue)
    coil = 1 + 0.04 * cloud(canvas, rng, 0.9)
    return picture * coil * rng.uniform(0.93, 1.04) + grain(canvas, streams.grain, 0.016)
