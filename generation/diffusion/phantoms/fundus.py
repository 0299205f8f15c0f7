"""Colour fundus photographs: optic disc, macula, vessel arcades; exudates, haemorrhages, a glaucomatous disc."""

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
    spots,
    strokes,
)

# Retina at the centre of the field, from a lightly to a heavily pigmented eye.
_PIGMENTS = np.array([(0.93, 0.56, 0.32), (0.87, 0.40, 0.16), (0.70, 0.24, 0.10), (0.52, 0.27, 0.15)], np.float32)


def _retina(canvas: Canvas, rng) -> np.ndarray:
    """(S, S, 3) background: pigment, choroidal mottling, light falling off to the rim."""
    position = rng.uniform(0, len(_PIGMENTS) - 1.001)
    lower = int(position)
    colour = _PIGMENTS[lower] + (position - lower) * (_PIGMENTS[lower + 1] - _PIGMENTS[lower])
    colour = colour * rng.uniform(0.90, 1.10, 3)
    light_x, light_y = rng.uniform(-0.2, 0.2, 2)
    fall_off = 1 - rng.uniform(0.25, 0.42) * ((canvas.x - light_x) ** 2 + (canvas.y - light_y) ** 2)
    mottling = 1 + 0.035 * cloud(canvas, rng, 0.22)
    return ((fall_off * mottling)[..., None] * colour).astype(np.float32)


def _arcade(rng, disc, temporal: int, vertical: int, reach: float, width: float) -> list[Stroke]:
    """A temporal arcade, a parabola from the disc around the macula, with branches to both sides."""
    t = np.linspace(0, 1, 18)
    wobble = np.cumsum(rng.normal(0, 0.006, t.size))
    x = disc[0] + temporal * (1.5 * t**1.6 - 0.06 * np.sin(np.pi * t)) + wobble
    y = disc[1] + vertical * (reach * np.sqrt(t) + 0.10 * t) + wobble[::-1]
    points = list(zip(x, y, strict=True))
    lines = [Stroke(points, width, width * 0.45)]
    for index in range(2, 15, 3):
        index += int(rng.integers(0, 3))
        along = np.arctan2(y[index] - y[index - 1], x[index] - x[index - 1])
        outwards = 1 if rng.random() < 0.6 else -1
        heading = along + outwards * temporal * vertical * rng.uniform(0.5, 0.9)
        length = rng.uniform(0.35, 0.6) if outwards > 0 else rng.uniform(0.2, 0.34)
        lines += branch(rng, points[index], heading, width * 0.55, length, forks=0.15, depth=1)
    return lines


def _vessels(rng, disc, temporal: int) -> tuple[list[Stroke], list[Stroke]]:
    """Arteries and veins: two temporal arcades each, and branches to the nasal side."""
    arteries, veins = [], []
    for vertical in (-1, 1):
        reach = rng.uniform(0.52, 0.62)
        veins += _arcade(rng, disc, temporal, vertical, reach, 0.052)
        arteries += _arcade(rng, disc, temporal, vertical, reach - rng.uniform(0.10, 0.16), 0.036)
        for lines, width in ((veins, 0.036), (arteries, 0.028)):
            lift = vertical * rng.uniform(0.45, 1.15)
            heading = lift if temporal < 0 else np.pi - lift
            lines += branch(rng, disc, heading, width, rng.uniform(0.5, 0.75), forks=0.18)
    return arteries, veins


def _disc(canvas: Canvas, rng, picture: np.ndarray, centre, has_glaucoma: bool) -> np.ndarray:
    """The optic disc: orange rim and pale cup, the cup wide and the surround bleached in glaucoma."""
    radius = rng.uniform(0.145, 0.165)
    cup = radius * (rng.uniform(0.80, 0.88) if has_glaucoma else rng.uniform(0.32, 0.45))
    if has_glaucoma:
        radius *= 1.3
        cup *= 1.22
        halo = ellipse(canvas, centre, (radius * 1.3, radius * 1.35), 0, 0.04)
        picture = blend(picture, 0.45 * halo, (0.95, 0.78, 0.52))
    rim_colour = (0.88, 0.50, 0.18) if has_glaucoma else (0.98, 0.80, 0.44)
    picture = blend(picture, ellipse(canvas, centre, (radius * 0.92, radius), 0, 0.02), rim_colour)
    return blend(picture, ellipse(canvas, centre, (cup * 0.92, cup), 0, 0.015), (1.0, 0.97, 0.86))


def _exudates(canvas: Canvas, rng, picture: np.ndarray, macula) -> np.ndarray:
    """Yellow waxy dots in two or three clusters around the macula."""
    places = []
    for _ in range(rng.integers(2, 4)):
        turn, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.16, 0.42)
        x, y = macula[0] + away * np.cos(turn), macula[1] + away * np.sin(turn)
        for _ in range(rng.integers(7, 12)):
            radius = rng.uniform(0.024, 0.050)
            dx, dy = rng.normal(0, 0.085, 2)
            places.append((x + dx, y + dy, radius, radius * rng.uniform(0.7, 1.0)))
    return blend(picture, spots(canvas, places), (1.0, 0.93, 0.50))


def _haemorrhages(canvas: Canvas, rng, picture: np.ndarray) -> np.ndarray:
    """Dark blots and flames all over the posterior pole."""
    places = []
    for _ in range(rng.integers(13, 22)):
        turn, away = rng.uniform(0, 2 * np.pi), 0.72 * np.sqrt(rng.uniform(0.02, 1))
        long, short = rng.uniform(0.052, 0.090), rng.uniform(0.036, 0.056)
        radii = (long, short) if rng.random() < 0.6 else (short, long)
        places.append((away * np.cos(turn), away * np.sin(turn), *radii))
    return blend(picture, 0.95 * spots(canvas, places), (0.26, 0.02, 0.03))


def draw_fundus(canvas: Canvas, streams: Streams, phantom_class: PhantomClass) -> np.ndarray:
    """(S, S, 3) photograph; the disc lies nasally, on the right of the image in a right eye."""
    rng = streams.anatomy
    nasal = 1 if phantom_class.side == "right" else -1
    picture = _retina(canvas, rng)
    disc = (nasal * rng.uniform(0.42, 0.52), rng.uniform(-0.08, 0.04))
    macula = (disc[0] - nasal * 0.60, disc[1] + 0.06)
    squared = (canvas.x - macula[0]) ** 2 + (canvas.y - macula[1]) ** 2
    picture *= (1 - 0.42 * np.exp(-squared / 0.035))[..., None]
    arteries, veins = _vessels(rng, disc, -nasal)
    picture = blend(picture, 0.80 * strokes(canvas, arteries), picture * np.float32((0.80, 0.38, 0.38)))
    picture = blend(picture, 0.95 * strokes(canvas, veins), picture * np.float32((0.56, 0.22, 0.26)))
    if phantom_class.finding == "exudates":
        picture = _exudates(canvas, streams.finding, picture, macula)
    elif phantom_class.finding == "haemorrhages":
        picture = _haemorrhages(canvas, streams.finding, picture)
    picture = _disc(canvas, rng, picture, disc, phantom_class.finding == "glaucoma")
    field_radius = rng.uniform(0.90, 0.97)
    picture = picture + grain(canvas, streams.grain, 0.010)[..., None]
    return picture * ellipse(canvas, (0, 0), (field_radius, field_radius), 0, 0.012)[..., None]
