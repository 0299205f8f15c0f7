"""Frontal chest radiographs: infiltrate, pleural effusion, pneumothorax, cardiomegaly."""

from dataclasses import dataclass

import numpy as np

from generation.diffusion.phantoms.catalogue import PhantomClass
from generation.diffusion.phantoms.shapes import (
    Canvas,
    Streams,
    Stroke,
    blend,
    branch,
    cloud,
    ellipse,
    grain,
    inside,
    lump,
    strokes,
)


@dataclass(frozen=True)
class _Thorax:
    """Measures of one chest, in coordinates."""

    lung_x: float  # distance of a lung's axis from the midline
    lung_width: float  # half width of a lung
    lung_height: float  # half height of a lung
    diaphragm_y: float  # top of the left dome
    heart_radius: float  # half width of the normal heart


def _thorax(rng) -> _Thorax:
    return _Thorax(
        lung_x=rng.uniform(0.42, 0.46),
        lung_width=rng.uniform(0.33, 0.37),
        lung_height=rng.uniform(0.70, 0.78),
        diaphragm_y=rng.uniform(0.46, 0.54),
        heart_radius=rng.uniform(0.22, 0.27),
    )


def _image_side(side: str) -> int:
    """-1 for the left half of the image: by convention the patient's right."""
    return -1 if side == "right" else 1


def _body(canvas: Canvas) -> np.ndarray:
    """Mask of trunk, shoulders and neck."""
    across = np.abs(canvas.x)
    trunk = inside(-0.88 + 0.42 * across**2.5 - canvas.y, 0.02)
    return np.maximum(trunk, inside(across - 0.25 - 0.6 * np.maximum(canvas.y + 0.85, 0), 0.03))


def _lung(canvas: Canvas, thorax: _Thorax, image_side: int) -> np.ndarray:
    """Mask of the lung in one half of the image, cut by its dome; the patient's right dome stands higher."""
    centre = (image_side * thorax.lung_x, -0.02)
    lung = ellipse(canvas, centre, (thorax.lung_width, thorax.lung_height), -image_side * 0.13, 0.03)
    top = thorax.diaphragm_y - (0.06 if image_side < 0 else 0.0)
    dome = top + 1.1 * (image_side * canvas.x - thorax.lung_x + 0.05) ** 2
    return lung * inside(canvas.y - dome, 0.02)


def _bones(canvas: Canvas, rng) -> np.ndarray:
    """Brightness added by ribs, clavicles and spine."""
    ribs, clavicles = [], []
    slope = rng.uniform(0.24, 0.34)
    t = np.linspace(0, 1, 12)
    for side in (-1, 1):
        for index in range(8):
            y = -0.66 + 0.165 * index + slope * t**2 - 0.10 * np.sin(np.pi * t)
            x = side * (0.06 + (0.66 + 0.02 * index) * t)
            ribs.append(Stroke(list(zip(x, y, strict=True)), 0.050, 0.040))
        clavicles.append(Stroke([(side * 0.07, -0.60), (side * 0.38, -0.69), (side * 0.80, -0.76)], 0.055, 0.065))
    vertebrae = np.exp(-((canvas.x / 0.085) ** 2)) * (0.10 + 0.025 * np.cos(canvas.y * 2 * np.pi / 0.17))
    return 0.095 * strokes(canvas, ribs) + 0.13 * strokes(canvas, clavicles) + vertebrae


def _lung_vessels(rng, thorax: _Thorax) -> list[Stroke]:
    """Hilar vessels that fan out into both lungs."""
    lines = []
    for side in (-1, 1):
        for fan in np.linspace(-1.15, 1.15, 6):
            heading = fan if side > 0 else np.pi - fan
            lines += branch(rng, (side * 0.17, -0.02), heading, 0.040, rng.uniform(0.35, 0.52), forks=0.2, depth=1)
    return lines


def _heart(canvas: Canvas, thorax: _Thorax, is_enlarged: bool) -> np.ndarray:
    """Mask of heart, aortic knob and mediastinum."""
    scale = 1.75 if is_enlarged else 1.0
    left = ellipse(canvas, (0.10 * scale, 0.30), (thorax.heart_radius * scale, 0.27 + 0.08 * (scale - 1)), 0.55, 0.03)
    right = ellipse(canvas, (-0.07 * scale, 0.30), (0.14 * scale, 0.24), 0, 0.03)
    knob = ellipse(canvas, (0.10, -0.30), (0.085, 0.10), 0, 0.03)
    column = inside(np.abs(canvas.x) - 0.11, 0.03)
    return 1 - (1 - left) * (1 - right) * (1 - knob) * (1 - column)


def _infiltrate(canvas: Canvas, rng, picture, lung, centre_x: float) -> np.ndarray:
    """A cloudy opacity with air showing through."""
    y = rng.uniform(-0.34, 0.26)
    opacity = 0.0
    for _ in range(5):
        centre = (centre_x + rng.normal(0, 0.07), y + rng.normal(0, 0.09))
        opacity = np.maximum(opacity, lump(canvas, rng, centre, rng.uniform(0.13, 0.19), 0.2, 0.06))
    opacity = opacity * np.clip(0.85 + 0.15 * cloud(canvas, rng, 0.10), 0, 1)
    return blend(picture, 0.88 * opacity * lung, 0.76)


def _effusion(canvas: Canvas, rng, picture, lung, image_side: int, thorax: _Thorax) -> np.ndarray:
    """Fluid over the diaphragm with a meniscus that climbs the chest wall."""
    level = thorax.diaphragm_y - rng.uniform(0.28, 0.50)
    outwards = image_side * canvas.x - thorax.lung_x
    meniscus = level - 1.3 * outwards * np.abs(outwards) - 0.15 * outwards
    fluid = inside(meniscus - canvas.y, 0.03)
    centre = (image_side * thorax.lung_x, 0.06)
    cavity = ellipse(canvas, centre, (thorax.lung_width * 1.04, thorax.lung_height), -image_side * 0.13, 0.03)
    beyond_heart = inside(0.16 - image_side * canvas.x, 0.04)
    above_abdomen = inside(canvas.y - thorax.diaphragm_y - 0.10, 0.12)
    return blend(picture, fluid * np.maximum(lung, cavity * beyond_heart * above_abdomen), 0.82)


def _pneumothorax(canvas: Canvas, rng, picture, lung, image_side: int, thorax: _Thorax) -> np.ndarray:
    """Black air around a collapsed lung with a bright pleural line."""
    shrink = rng.uniform(0.52, 0.64)
    centre = (image_side * (thorax.lung_x - 0.16), 0.06)
    radii = (thorax.lung_width * shrink * 1.15, thorax.lung_height * shrink)
    collapsed = ellipse(canvas, centre, radii, -image_side * 0.1, 0.015)
    larger = ellipse(canvas, centre, (radii[0] + 0.035, radii[1] + 0.035), -image_side * 0.1, 0.015)
    picture = blend(picture, 0.97 * lung * (1 - larger), 0.03)
    picture = blend(picture, 0.55 * lung * collapsed, 0.58)
    return blend(picture, 0.9 * lung * (larger - collapsed).clip(0, 1), 0.82)


def _plant(canvas: Canvas, rng, picture, lungs, thorax: _Thorax, phantom_class: PhantomClass) -> np.ndarray:
    """``picture`` with the finding of ``phantom_class``; ``lungs`` are masks by image side."""
    image_side = _image_side(phantom_class.side)
    lung = lungs[image_side]
    match phantom_class.finding:
        case "infiltrate":
            return _infiltrate(canvas, rng, picture, lung, image_side * thorax.lung_x)
        case "effusion":
            return _effusion(canvas, rng, picture, lung, image_side, thorax)
        case "pneumothorax":
            return _pneumothorax(canvas, rng, picture, lung, image_side, thorax)
    return picture


def draw_chest_xray(canvas: Canvas, streams: Streams, phantom_class: PhantomClass) -> np.ndarray:
    """(S, S) radiograph, the patient's right on the left of the image."""
    rng = streams.anatomy
    thorax = _thorax(rng)
    heart = _heart(canvas, thorax, phantom_class.finding == "cardiomegaly")
    lungs = {side: _lung(canvas, thorax, side) * (1 - heart) for side in (-1, 1)}
    both = lungs[-1] + lungs[1]
    soft_tissue = 0.56 + 0.16 * inside(thorax.diaphragm_y - canvas.y, 0.10) + 0.02 * cloud(canvas, rng, 0.4)
    picture = blend(soft_tissue, both, rng.uniform(0.10, 0.20))
    picture += 0.12 * strokes(canvas, _lung_vessels(rng, thorax)) * both
    picture = blend(picture, heart * inside(canvas.y - 0.62, 0.05), 0.74)
    picture += _bones(canvas, rng) * (0.45 + 0.55 * both)
    picture -= 0.12 * inside(np.abs(canvas.x) - 0.045, 0.02) * inside(canvas.y + 0.32, 0.04)
    picture = _plant(canvas, streams.finding, picture, lungs, thorax, phantom_class)
    return 0.02 + picture * _body(canvas) * rng.uniform(0.92, 1.08) + grain(canvas, streams.grain, 0.014, 0.8)
