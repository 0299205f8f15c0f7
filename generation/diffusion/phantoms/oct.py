"""OCT B-scans of the macula: intraretinal fluid, drusen, pigment epithelial detachment, macular hole."""

from dataclasses import dataclass

import numpy as np

from generation.diffusion.phantoms.catalogue import PhantomClass
from generation.diffusion.phantoms.shapes import Canvas, Streams, blend, cloud, ellipse, grain, inside

# (depth where a layer ends as a share of the neural retina, brightness), from the vitreous downwards
_LAYERS = (
    (0.13, 0.78), (0.30, 0.48), (0.42, 0.66), (0.54, 0.30), (0.63, 0.56), (0.88, 0.22), (0.93, 0.74), (1.01, 0.34),
)  # fmt: skip


@dataclass(frozen=True)
class _Surfaces:
    """Heights of the boundaries in every column, (S,) in coordinates."""

    top: np.ndarray  # inner limiting membrane
    epithelium: np.ndarray  # pigment epithelium, lifted by drusen or a detachment
    base: np.ndarray  # Bruch's membrane


def _bumps(rng, column: np.ndarray, finding: str) -> np.ndarray:
    """How far the pigment epithelium is lifted, (S,) in coordinates."""
    lift = np.zeros_like(column)
    if finding == "drusen":
        for centre in np.linspace(-0.68, 0.68, int(rng.integers(4, 6))):
            place = centre + rng.uniform(-0.07, 0.07)
            lift += rng.uniform(0.12, 0.17) * np.exp(-(((column - place) / rng.uniform(0.07, 0.10)) ** 2))
    elif finding == "detachment":
        centre, width = rng.uniform(-0.28, 0.28), rng.uniform(0.30, 0.42)
        lift += rng.uniform(0.26, 0.34) * np.sqrt(np.clip(1 - ((column - centre) / width) ** 2, 0, 1))
    return lift


def _surfaces(canvas: Canvas, streams: Streams, finding: str) -> _Surfaces:
    rng, column = streams.anatomy, canvas.x[0]
    base = rng.uniform(0.20, 0.34) + rng.uniform(-0.10, 0.10) * column + rng.uniform(-0.04, 0.10) * column**2
    thickness = rng.uniform(0.50, 0.58)
    pit = rng.uniform(0.19, 0.25) * np.exp(-(((column - rng.normal(0, 0.04)) / rng.uniform(0.20, 0.27)) ** 2))
    lift = _bumps(streams.finding, column, finding)
    if finding == "fluid":
        pit = pit * 0.2 - 0.14 * np.exp(-((column / 0.45) ** 2))
    if finding == "hole":
        pit = -0.05 * np.exp(-((column / 0.42) ** 2))
    carried = 0.6 if finding == "detachment" else 0.25  # share of the lift that the inner surface follows
    return _Surfaces(base - thickness + pit - carried * lift, base - lift, base)


def _retina(canvas: Canvas, surfaces: _Surfaces) -> np.ndarray:
    """Layered neural retina over the bright pigment epithelium."""
    depth = (canvas.y - surfaces.top) / (surfaces.epithelium - surfaces.top)
    picture = np.full_like(canvas.x, 0.045)
    above = 0.0
    for end, brightness in _LAYERS:
        picture += brightness * inside(above - depth, 0.012) * inside(depth - end, 0.012)
        above = end
    band = np.exp(-(((canvas.y - surfaces.epithelium) / 0.034) ** 2))
    return np.maximum(picture, 0.95 * band)


def _choroid(canvas: Canvas, rng, surfaces: _Surfaces) -> np.ndarray:
    """Vascular tissue under Bruch's membrane, fading with depth."""
    depth = canvas.y - surfaces.base
    vessels = np.clip(0.50 + 0.17 * cloud(canvas, rng, 0.11), 0.1, 1)
    return inside(0.045 - depth, 0.012) * np.exp(-np.clip(depth, 0, 2) / 0.34) * vessels


def _fluid(canvas: Canvas, rng, picture: np.ndarray, surfaces: _Surfaces) -> np.ndarray:
    """Dark cysts between the layers around the fovea."""
    for place in np.linspace(-0.36, 0.36, int(rng.integers(4, 6))):
        x = place + rng.uniform(-0.04, 0.04)
        column = int(np.clip((x + 1) / 2 * canvas.size, 0, canvas.size - 1))
        top, bottom = surfaces.top[column], surfaces.epithelium[column]
        y = top + (bottom - top) * rng.uniform(0.38, 0.60)
        tall = rng.uniform(0.24, 0.34) * (bottom - top) * (1.1 - abs(place))
        picture = blend(picture, ellipse(canvas, (x, y), (rng.uniform(0.07, 0.105), tall), 0, 0.015), 0.03)
    return picture


def _hole(canvas: Canvas, rng, picture: np.ndarray, surfaces: _Surfaces) -> np.ndarray:
    """A gap through all layers, narrowest at mid depth, down to the pigment epithelium."""
    depth = np.clip((canvas.y - surfaces.top) / (surfaces.epithelium - surfaces.top), -1, 1)
    half_width = rng.uniform(0.13, 0.19) * (0.55 + 2.4 * (depth - 0.5) ** 2)
    gap = inside(np.abs(canvas.x - rng.uniform(-0.10, 0.10)) - half_width, 0.02)
    above = inside(canvas.y - surfaces.epithelium + 0.06, 0.015)
    return blend(picture, gap * above, 0.045)


def draw_oct(canvas: Canvas, streams: Streams, phantom_class: PhantomClass) -> np.ndarray:
    """(S, S) B-scan, vitreous above, with multiplicative speckle."""
    finding = phantom_class.finding
    surfaces = _surfaces(canvas, streams, finding)
    picture = _retina(canvas, surfaces)
    picture = np.maximum(picture, _choroid(canvas, streams.anatomy, surfaces))
    lifted = inside(surfaces.epithelium + 0.035 - canvas.y, 0.012) * inside(canvas.y - surfaces.base, 0.012)
    if finding == "drusen":
        picture = blend(picture, lifted * (surfaces.base - surfaces.epithelium > 0.02), 0.52)
    elif finding == "detachment":
        picture = blend(picture, lifted * (surfaces.base - surfaces.epithelium > 0.03), 0.09)
        membrane = np.exp(-(((canvas.y - surfaces.base) / 0.02) ** 2))
        picture = np.maximum(picture, 0.6 * membrane)
    elif finding == "fluid":
        picture = _fluid(canvas, streams.finding, picture, surfaces)
    elif finding == "hole":
        picture = _hole(canvas, streams.finding, picture, surfaces)
    gain = streams.anatomy.uniform(0.95, 1.12)
    shadow = 1 + 0.05 * cloud(canvas, streams.anatomy, 0.5)
    speckle, floor = grain(canvas, streams.grain, 0.17), np.abs(grain(canvas, streams.grain, 0.025))
    return picture * gain * shadow * (1 + speckle) + floor
