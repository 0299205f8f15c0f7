"""Axial chest CT slices at the level of the heart, soft-tissue brightness: lung nodule, pleural effusion."""

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
    spots,
    strokes,
)

_CENTRE_Y = 0.04  # of the body


def _arc(centre, radii, begin: float, end: float, width: float) -> Stroke:
    angles = np.linspace(begin, end, 7)
    points = [(centre[0] + radii[0] * np.sin(a), centre[1] - radii[1] * np.cos(a)) for a in angles]
    return Stroke(points, width, width)


def _wall(canvas: Canvas, rng, body) -> np.ndarray:
    """Skin, fat, muscle, ribs; all of it outside the pleural cavity."""
    width, height = body
    outer = ellipse(canvas, (0, _CENTRE_Y), (width, height), 0, 0.015)
    muscle = ellipse(canvas, (0, _CENTRE_Y), (width * 0.93, height * 0.90), 0, 0.02)
    picture = 0.02 + 0.26 * outer
    picture = blend(picture, muscle, 0.50 + 0.02 * cloud(canvas, rng, 0.15))
    ribs = []
    for side in (-1, 1):
        for begin in np.linspace(0.28, 2.55, 6) + rng.uniform(-0.08, 0.08):
            ribs.append(_arc((0, _CENTRE_Y), (side * width * 0.86, height * 0.82), begin, begin + 0.24, 0.055))
    ribs.append(Stroke([(-0.09, _CENTRE_Y - height * 0.84), (0.09, _CENTRE_Y - height * 0.84)], 0.07, 0.07))
    return blend(picture, strokes(canvas, ribs), 0.95)


def _lungs(canvas: Canvas, rng, body) -> dict[int, np.ndarray]:
    """Masks of the two lungs, keyed by image side, the heart not yet cut out."""
    width, height = body
    tilt, axis = rng.uniform(0.08, 0.16), width * rng.uniform(0.455, 0.48)
    half_width, half_height = width * rng.uniform(0.325, 0.345), height * rng.uniform(0.66, 0.71)
    masks = {}
    for side in (-1, 1):
        masks[side] = ellipse(canvas, (side * axis, _CENTRE_Y), (half_width, half_height), -side * tilt, 0.02)
    return masks


def _lung_vessels(rng) -> list[Stroke]:
    lines = []
    for side in (-1, 1):
        for fan in np.linspace(-1.2, 1.2, 7):
            heading = fan + rng.normal(0, 0.1)
            heading = heading if side > 0 else np.pi - heading
            lines += branch(rng, (side * 0.20, 0.04), heading, 0.050, rng.uniform(0.35, 0.55), forks=0.25)
    return lines


def _mediastinum(canvas: Canvas, rng, picture: np.ndarray, heart) -> np.ndarray:
    """Heart, oesophagus, descending aorta, vertebra."""
    picture = blend(picture, heart, 0.64)
    chambers = ellipse(canvas, (0.17, -0.13), (0.13, 0.14), 0.5, 0.04)
    picture = blend(picture, heart * chambers * 0.6, 0.76)
    picture = blend(picture, ellipse(canvas, (0.155, 0.33), (0.075, 0.075), 0, 0.015), 0.74)
    picture = blend(picture, ellipse(canvas, (0.03, 0.27), (0.045, 0.035), 0, 0.015), 0.58)
    vertebra = ellipse(canvas, (0, 0.46), (0.135, 0.105), 0, 0.015)
    tips = ((0, 0.72), (-0.22, 0.58), (0.22, 0.58))
    processes = strokes(canvas, [Stroke([(0, 0.57), tip], 0.07, 0.05) for tip in tips])
    picture = blend(picture, np.maximum(vertebra, processes), 0.97)
    picture = blend(picture, 0.5 * ellipse(canvas, (0, 0.45), (0.09, 0.065), 0, 0.03), 0.75)
    return blend(picture, spots(canvas, [(0, 0.575, 0.05, 0.045)]), 0.45)


def _effusion(canvas: Canvas, rng, picture: np.ndarray, lung, image_side: int) -> np.ndarray:
    """Fluid that lies behind the lung, a crescent with a concave upper border."""
    level = rng.uniform(0.10, 0.22)
    outwards = image_side * canvas.x - 0.40
    fluid = inside(level - 1.1 * outwards * outwards - canvas.y, 0.02)
    return blend(picture, fluid * lung, 0.56)


def _nodule(canvas: Canvas, rng, picture: np.ndarray, image_side: int, body) -> np.ndarray:
    centre = (image_side * body[0] * rng.uniform(0.46, 0.60), _CENTRE_Y + rng.uniform(-0.24, 0.24))
    return blend(picture, lump(canvas, rng, centre, rng.uniform(0.095, 0.135), 0.13, 0.015), 0.82)


def draw_chest_ct(canvas: Canvas, streams: Streams, phantom_class: PhantomClass) -> np.ndarray:
    """(S, S) slice seen from the feet, the patient's right on the left of the image."""
    rng = streams.anatomy
    body = (rng.uniform(0.88, 0.95), rng.uniform(0.68, 0.75))
    picture = _wall(canvas, rng, body)
    heart_size = rng.uniform(0.9, 1.08)
    heart = ellipse(canvas, (0.09, -0.15), (0.29 * heart_size, 0.24 * heart_size), 0.45, 0.02)
    middle = inside(np.abs(canvas.x) - 0.12, 0.03)
    lungs = {side: mask * (1 - heart) * (1 - middle) for side, mask in _lungs(canvas, rng, body).items()}
    both = lungs[-1] + lungs[1]
    picture = blend(picture, both, rng.uniform(0.06, 0.11))
    picture += 0.36 * strokes(canvas, _lung_vessels(rng)) * both
    picture = _mediastinum(canvas, rng, picture, heart)
    image_side = -1 if phantom_class.side == "right" else 1
    if phantom_class.finding == "nodule":
        picture = _nodule(canvas, streams.finding, picture, image_side, body)
    elif phantom_class.finding == "effusion":
        picture = _effusion(canvas, streams.finding, picture, lungs[image_side], image_side)
    table = strokes(canvas, [_arc((0, -0.65), (1.55, 1.55), 2.65, 3.63, 0.03)])
    return blend(picture, 0.5 * table, 0.40) + grain(canvas, streams.grain, 0.016)
