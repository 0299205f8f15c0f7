"""Drawing primitives of the phantoms.

Coordinates run from -1 (left, top) to 1 (right, bottom), so one drawing works at every size. Masks and pictures are
float32 (S, S) or (S, S, 3) in [0, 1], S the size in pixels.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

_OVERSAMPLING = 2  # pixels drawn per pixel kept, along each axis


@dataclass(frozen=True, eq=False)
class Canvas:
    """The pixel grid that a phantom is drawn on."""

    size: int  # pixels along each axis
    x: np.ndarray  # (S, S) position of each pixel, -1 left to 1 right
    y: np.ndarray  # (S, S) position of each pixel, -1 top to 1 bottom


class Streams(NamedTuple):
    """Random generators of one phantom: the same seed gives the same anatomy whatever the finding."""

    anatomy: np.random.Generator
    finding: np.random.Generator
    grain: np.random.Generator


class Stroke(NamedTuple):
    """A polyline that tapers."""

    points: list[tuple[float, float]]  # coordinates
    start_width: float  # coordinates
    end_width: float  # coordinates


@lru_cache(maxsize=4)
def canvas_of(size: int) -> Canvas:
    """The canvas of ``size`` pixels; its grids are shared and read-only."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    x, y = np.meshgrid(centres, centres)
    x.flags.writeable = y.flags.writeable = False
    return Canvas(size, x, y)


def inside(distance: np.ndarray, softness: float = 0.03) -> np.ndarray:
    """1 where the signed ``distance`` is negative, 0 where positive, the edge about twice ``softness`` wide."""
    return 0.5 - 0.5 * np.tanh(distance / softness)


def ellipse(canvas: Canvas, centre, radii, angle: float = 0.0, softness: float = 0.03) -> np.ndarray:
    """Soft mask of an ellipse turned by ``angle`` radians."""
    dx, dy = canvas.x - centre[0], canvas.y - centre[1]
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    along, across = (dx * cosine + dy * sine) / radii[0], (dy * cosine - dx * sine) / radii[1]
    return inside(np.sqrt(along * along + across * across) - 1.0, softness / min(radii))


def lump(canvas: Canvas, rng, centre, radius: float, unevenness: float = 0.15, softness: float = 0.03) -> np.ndarray:
    """Soft mask of a roundish shape whose border wavers by the share ``unevenness`` of its radius."""
    dx, dy = canvas.x - centre[0], canvas.y - centre[1]
    angle = np.arctan2(dy, dx)
    border = np.ones_like(dx)
    for lobes in (2, 3, 5):
        border += unevenness * rng.uniform(0.4, 1.0) / lobes**0.5 * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi))
    return inside(np.hypot(dx, dy) - radius * border, softness)


def cloud(canvas: Canvas, rng, feature: float) -> np.ndarray:
    """Smooth noise, zero mean and unit deviation, with blobs of about ``feature`` in coordinates."""
    nodes = int(np.ceil(5.0 / feature)) + 8
    lattice = gaussian_filter(rng.standard_normal((nodes, nodes)).astype(np.float32), 1.2)
    lattice = (lattice - lattice.mean()) / lattice.std()
    enlarged = Image.fromarray(lattice).resize(
        (canvas.size, canvas.size), Image.Resampling.BICUBIC, box=(3, 3, nodes - 3, nodes - 3)
    )
    return np.asarray(enlarged)


def grain(canvas: Canvas, rng, amplitude: float, blur_pixels: float = 0.6) -> np.ndarray:
    """Fine noise of the detector: deviation ``amplitude``, blurred over ``blur_pixels``."""
    noise = gaussian_filter(rng.standard_normal((canvas.size, canvas.size)).astype(np.float32), blur_pixels)
    return noise * (amplitude / float(noise.std()))


def _drawing(canvas: Canvas) -> tuple[Image.Image, ImageDraw.ImageDraw, float]:
    side = canvas.size * _OVERSAMPLING
    image = Image.new("L", (side, side))
    return image, ImageDraw.Draw(image), side / 2


def _mask(canvas: Canvas, image: Image.Image) -> np.ndarray:
    return np.asarray(image.reduce(_OVERSAMPLING), np.float32) / 255


def strokes(canvas: Canvas, lines: list[Stroke]) -> np.ndarray:
    """Mask of tapering polylines, none thinner than half a pixel."""
    image, pen, scale = _drawing(canvas)
    for points, start_width, end_width in lines:
        ends = [((x + 1) * scale, (y + 1) * scale) for x, y in points]
        for index, (begin, end) in enumerate(zip(ends, ends[1:], strict=False)):
            width = start_width + (end_width - start_width) * index / max(1, len(ends) - 2)
            thickness = max(1, round(width * scale))
            pen.line((begin, end), fill=255, width=thickness)
            if thickness > 2:
                radius = thickness / 2 - 0.5
                pen.ellipse((end[0] - radius, end[1] - radius, end[0] + radius, end[1] + radius), fill=255)
    return _mask(canvas, image)


def spots(canvas: Canvas, places: list[tuple[float, float, float, float]]) -> np.ndarray:
    """Mask of many small upright ellipses (x, y, horizontal radius, vertical radius)."""
    image, pen, scale = _drawing(canvas)
    for x, y, across, down in places:
        box = (x - across, y - down, x + across, y + down)
        pen.ellipse([(edge + 1) * scale for edge in box], fill=255)
    return _mask(canvas, image)


def blend(picture: np.ndarray, mask: np.ndarray, value) -> np.ndarray:
    """``picture`` with ``value`` (a number, a colour or a picture) where ``mask`` is 1."""
    if picture.ndim == 3:
        mask = mask[..., None]
    return picture + mask * (np.asarray(value, np.float32) - picture)


def branch(rng, start, heading: float, width: float, length: float, *, turn=0.0, forks=0.2, depth=0) -> list[Stroke]:
    """A vessel that winds, tapers and forks: strokes from ``start`` towards ``heading`` (radians).

    ``length`` and ``width`` are in coordinates, ``turn`` is the bend in radians per step, ``forks`` the chance of a
    side branch per step; side branches of a ``depth`` beyond 2 are not drawn.
    """
    step = 0.07
    count = max(2, round(length / step))
    (x, y), points, children = start, [tuple(start)], []
    for index in range(count):
        heading += turn + rng.normal(0, 0.10)
        x, y = x + step * np.cos(heading), y + step * np.sin(heading)
        points.append((x, y))
        if depth < 2 and index > 0 and rng.random() < forks:
            away = heading + rng.choice((-1, 1)) * rng.uniform(0.4, 0.8)
            rest = (count - index) * step * 0.8
            child_width = width * (1 - 0.5 * index / count) * 0.7
            children += branch(rng, (x, y), away, child_width, rest, turn=-turn, forks=forks, depth=depth + 1)
    return [Stroke(points, width, width * 0.5), *children]
