"""Axial breast MRI after contrast medium: mass, implants."""

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


def _chest(canvas: Canvas, rng) -> np.ndarray:
    """Chest wall with muscle, lungs and heart below the breasts."""
    wall = inside(0.36 + 0.16 * canvas.x**2 - canvas.y, 0.02)
    picture = 0.025 + wall * (0.33 + 0.03 * cloud(canvas, rng, 0.25))
    ribs = [Stroke([(s * 0.10, 0.49), (s * 0.45, 0.53), (s * 0.80, 0.64)], 0.03, 0.03) for s in (-1, 1)]
    picture = blend(picture, 0.7 * strokes(canvas, ribs), 0.55)
    for side in (-1, 1):
        picture = blend(picture, ellipse(canvas, (side * 0.50, 0.98), (0.38, 0.38), 0, 0.025), 0.07)
    return blend(picture, ellipse(canvas, (0.12, 0.86), (0.27, 0.24), 0.3, 0.02), 0.66)


def _breast(canvas: Canvas, rng, centre_x: float, radii) -> tuple[np.ndarray, np.ndarray]:
    """Mask of one breast and its brightness: skin, fat, a tree of glands towards the nipple."""
    across, up = np.abs(canvas.x - centre_x) / radii[0], np.abs(canvas.y - 0.42) / radii[1]
    distance = (across**2.4 + up**2.4) ** (1 / 2.4) - 1
    outline = inside(distance, 0.04) * inside(canvas.y - 0.40 - 0.16 * canvas.x**2, 0.015)
    within = inside(distance + 0.07, 0.03)
    region = ellipse(canvas, (centre_x, 0.18), (radii[0] * 0.68, radii[1] * 0.60), 0, 0.06)
    density = rng.uniform(-0.35, 0.45)
    glands = region * inside(-density - cloud(canvas, rng, 0.16), 0.35)
    tissue = 0.24 + 0.27 * glands + 0.22 * (1 - within)
    nipple_y = 0.42 - radii[1]
    ducts = []
    for fan in np.linspace(-0.6, 0.6, 4):
        ducts += branch(rng, (centre_x, nipple_y + 0.05), np.pi / 2 + fan, 0.026, 0.45, forks=0.12, depth=1)
    return outline, tissue + 0.12 * strokes(canvas, ducts) * within


def _mass(canvas: Canvas, rng, picture: np.ndarray, centre_x: float) -> np.ndarray:
    """A bright spiculated mass."""
    centre = (centre_x + rng.uniform(-0.12, 0.12), rng.uniform(-0.18, 0.18))
    radius = rng.uniform(0.105, 0.15)
    spikes = []
    for heading in np.arange(7) * 2 * np.pi / 7 + rng.uniform(0, 1):
        reach = radius * rng.uniform(1.2, 1.6)
        tip = (centre[0] + reach * np.cos(heading), centre[1] + reach * np.sin(heading))
        spikes.append(Stroke([centre, tip], 0.040, 0.016))
    mass = np.maximum(lump(canvas, rng, centre, radius, 0.16, 0.02), 0.5 * strokes(canvas, spikes))
    return blend(picture, mass, 0.95)


def _implant(canvas: Canvas, picture: np.ndarray, outline, centre_x: float, radii) -> np.ndarray:
    """A smooth oval of silicone in a dark capsule, between gland and chest wall."""
    centre, size = (centre_x, 0.16), (radii[0] * 0.72, radii[1] * 0.34)
    capsule = ellipse(canvas, centre, (size[0] + 0.035, size[1] + 0.035), 0, 0.012)
    picture = blend(picture, capsule * outline, 0.06)
    return blend(picture, ellipse(canvas, centre, size, 0, 0.012) * outline, 0.80)


def draw_breast_mri(canvas: Canvas, streams: Streams, phantom_class: PhantomClass) -> np.ndarray:
    """(S, S) slice with the breasts up, the patient's right on the left of the image."""
    rng = streams.anatomy
    picture = _chest(canvas, rng)
    axis, radii = rng.uniform(0.45, 0.49), (rng.uniform(0.37, 0.43), rng.uniform(0.86, 1.06))
    lesion_side = -1 if phantom_class.side == "right" else 1
    for side in (-1, 1):
        outline, tissue = _breast(canvas, rng, side * axis, radii)
        picture = blend(picture, outline, tissue)
        if phantom_class.finding == "implants":
            picture = _implant(canvas, picture, outline, side * axis, radii)
        elif phantom_class.finding == "mass" and side == lesion_side:
            picture = _mass(canvas, streams.finding, picture, side * axis)
    return picture * rng.uniform(0.95, 1.08) + grain(canvas, streams.grain, 0.016)
