"""The p values of generated and of real images as one SVG: a plot for each kind, their shares against the even line.

Of images of new patients a share x has p <= x: a line along the diagonal. Above it images are nearer to training
images than a new patient's.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from generation.memorisation import LEVEL
from medsyn.percent import percent
from training.evaluation.copies import Resemblances

_SIDE = 200  # pixels of the axes
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 30, 46  # margins of a plot
_WIDTH, _HEIGHT = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM
_LEGEND = 30
_TEXT, _LINES = "#1f2937", "#e5e7eb"
_GENERATED, _REAL = "#0072b2", "#d55e00"  # of Okabe and Ito, apart for colour-blind eyes too
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def copies_plot(found: Resemblances, real_kinds: Sequence[str], generated_kinds: Sequence[str]) -> str:
    """The SVG, kinds in order of their names."""
    kinds = sorted(set(generated_kinds))
    width, height = _WIDTH * len(kinds), _HEIGHT + _LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        "<title>How near images come to training images: share of images with p or less</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for column, kind in enumerate(kinds):
        made = found.p_values[np.array(generated_kinds) == kind]
        real = None if found.real_p_values is None else found.real_p_values[np.array(real_kinds) == kind]
        parts += [f'<g transform="translate({column * _WIDTH},0)">', *_plot(kind, made, real), "</g>"]
    names = [(_GENERATED, "generated")]
    if found.real_p_values is not None:
        names.append((_REAL, "real, other patients"))
    for place, (colour, name) in enumerate(names):
        left = _LEFT + place * 120
        parts.append(f'<path d="M{left} {_HEIGHT + 12}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 30}" y="{_HEIGHT + 16}" fill="{_TEXT}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(p_value: float) -> float:
    return round(_LEFT + p_value * _SIDE, 1)


def _y(share: float) -> float:
    return round(_TOP + (1 - share) * _SIDE, 1)


def _plot(kind: str, made: np.ndarray, real: np.ndarray | None) -> list[str]:
    blocked = float((made <= LEVEL).mean())
    title = f"{escape(kind)}: {len(made)} images, {percent(blocked, 1)} blocked"
    parts = [f'<text x="{_LEFT}" y="18" fill="{_TEXT}">{title}</text>']
    for tick in _TICKS:
        x, y = _x(tick), _y(tick)
        parts.append(f'<path d="M{_LEFT} {y}h{_SIDE}M{x} {_TOP}v{_SIDE}" stroke="{_LINES}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end" fill="{_TEXT}">{tick:g}</text>')
        parts.append(f'<text x="{x}" y="{_TOP + _SIDE + 16}" text-anchor="middle" fill="{_TEXT}">{tick:g}</text>')
    parts.append(f'<path d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}" stroke="{_TEXT}" stroke-dasharray="2 4"/>')
    middle = _LEFT + _SIDE / 2
    parts.append(f'<text x="{middle}" y="{_TOP + _SIDE + 34}" text-anchor="middle" fill="{_TEXT}">p</text>')
    if real is not None and len(real):
        parts.append(_steps(real, _REAL))
    parts.append(_steps(made, _GENERATED))
    return parts


def _steps(p_values: np.ndarray, colour: str) -> str:
    """The share of values up to each p, as a stair."""
    path, share = [f"M{_x(0)} {_y(0)}"], 0.0
    values, counts = np.unique(p_values, return_counts=True)
    for value, count in zip(values, counts, strict=True):
        share += count / len(p_values)
        path.append(f"H{_x(value)}V{_y(share)}")
    return f'<path d="{"".join(path)}H{_x(1)}" fill="none" stroke="{colour}" stroke-width="2"/>'
