"""Planted defects: faults of a synthetic image with a severity that is known because it was chosen.

Severity runs from 0 (untouched, bit for bit) to 1 (unusable). With the seed fixed, the place and pattern of a defect
are fixed too and only its strength grows, so the distance to the clean image grows with severity. The severities of
different defects are matched by eye, not by a measure.
"""

from collections.abc import Callable, Iterable
from zlib import crc32

import numpy as np
from scipy.fft import dctn, idctn
from scipy.ndimage import map_coordinates

from generation.diffusion.phantoms.shapes import canvas_of, cloud, ellipse, grain

# A defect takes picture (S, S, 3) in [0, 1], severity in (0, 1], a random generator; and gives the spoilt picture.
Defect = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def _noise(picture, severity, rng):
    """Grain, equal in the three channels."""
    return picture + grain(canvas_of(len(picture)), rng, 0.20 * severity, 0.5)[..., None]


def _blur(picture, severity, rng):
    """Gaussian blur in the cosine basis: exact below a pixel too, where a sampled kernel does nothing."""
    size = len(picture)
    sigma = 0.035 * size * severity
    decay = np.exp(-0.5 * (sigma * np.pi * np.arange(size, dtype=np.float32) / size) ** 2)
    waves = dctn(picture, axes=(0, 1), norm="ortho") * (decay[:, None] * decay)[..., None]
    return idctn(waves, axes=(0, 1), norm="ortho")


def _patch_dropout(picture, severity, rng):
    """Squares without signal, which grow around fixed centres."""
    canvas, spoilt = canvas_of(len(picture)), picture.copy()
    for _ in range(5):
        x, y = rng.uniform(-0.65, 0.65, 2)
        side = 0.26 * severity**0.5 * rng.uniform(0.7, 1.0)
        spoilt[(np.abs(canvas.x - x) < side) & (np.abs(canvas.y - y) < side)] = 0.5
    return spoilt


def _ghosting(picture, severity, rng):
    """A displaced second image shines through, as after a movement during acquisition."""
    size = len(picture)
    shift = int(size * rng.uniform(0.10, 0.18)) * int(rng.choice((-1, 1)))
    ghost = np.roll(picture, shift, axis=int(rng.integers(0, 2)))
    return picture + 0.55 * severity * (ghost - picture)


def _banding(picture, severity, rng):
    """Stripes across the image."""
    canvas = canvas_of(len(picture))
    direction = canvas.x if rng.random() < 0.5 else canvas.y
    stripes = np.sin(direction * np.pi * rng.uniform(7, 13) + rng.uniform(0, 2 * np.pi))
    return picture + 0.26 * severity * stripes[..., None]


def _anatomy_warp(picture, severity, rng):
    """Anatomy bent out of shape."""
    size = len(picture)
    canvas = canvas_of(size)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    reach = 0.055 * size * severity
    places = rows + reach * cloud(canvas, rng, 0.5), columns + reach * cloud(canvas, rng, 0.5)
    return np.stack([map_coordinates(picture[..., c], places, order=1, mode="nearest") for c in range(3)], axis=2)


def _saturation(picture, severity, rng):
    """Contrast driven until the tones clip at black and white."""
    return (picture - 0.45) * (1 + 5 * severity**1.5) + 0.45


def _checkerboard(picture, severity, rng):
    """The grid that badly initialised up-sampling leaves behind."""
    size = len(picture)
    cell = max(1, size // 64)
    rows, columns = np.mgrid[0:size, 0:size] // cell
    return picture + (0.20 * severity * (((rows + columns) % 2) * 2.0 - 1.0)).astype(np.float32)[..., None]


def _misplaced_tissue(picture, severity, rng):
    """An island of tissue copied from elsewhere in the image."""
    size = len(picture)
    centre = rng.uniform(-0.35, 0.35, 2)
    shift = [int(size * rng.uniform(0.16, 0.26)) * int(rng.choice((-1, 1))) for _ in range(2)]
    radius = 0.48 * severity**0.5
    island = ellipse(canvas_of(size), centre, (radius, radius), 0, 0.012)[..., None]
    return picture + island * (np.roll(picture, shift, axis=(0, 1)) - picture)


_DEFECTS: dict[str, Defect] = {
    "noise": _noise,
    "blur": _blur,
    "patch_dropout": _patch_dropout,
    "ghosting": _ghosting,
    "banding": _banding,
    "anatomy_warp": _anatomy_warp,
    "saturation": _saturation,
    "checkerboard": _checkerboard,
    "misplaced_tissue": _misplaced_tissue,
}
DEFECTS: tuple[str, ...] = tuple(_DEFECTS)


def plant_defect(pixels: np.ndarray, name: str, severity: float, seed: int) -> np.ndarray:
    """A copy of ``pixels`` (uint8 (S, S, 3)) with one defect of DEFECTS planted.

    ``severity`` 0 gives the same pixels. Raises ValueError for an unknown name, a severity outside 0..1 or pixels of
    another shape or type.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape != (len(pixels), len(pixels), 3):
        raise ValueError(f"Defects need uint8 pixels (S, S, 3); these are {pixels.dtype} {pixels.shape}.")
    if name not in _DEFECTS:
        raise ValueError(f"Unknown defect {name!r}. Known: {', '.join(DEFECTS)}.")
    if not 0 <= severity <= 1:
        raise ValueError(f"Severity {severity} of defect {name!r} is outside 0..1.")
    if severity == 0:
        return pixels.copy()
    rng = np.random.default_rng([seed, crc32(name.encode())])
    spoilt = _DEFECTS[name](pixels.astype(np.float32) / 255, severity, rng)
    return np.round(spoilt.clip(0, 1) * 255).astype(np.uint8)


def combined_severity(severities: Iterable[float]) -> float:
    """Severity of several defects together: 1 - prod(1 - s), each takes its share of what the others left good."""
    return float(1 - np.prod([1 - severity for severity in severities]))
