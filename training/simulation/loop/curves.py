"""The curves of a simulated loop as one SVG: a plot for each figure, a line for each arm. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from medsyn.percent import percent
from training.simulation.loop.report import FIGURES, LABEL, Figure
from training.simulation.loop.settings import ARMS, OURS

_DRAWN = ("served.poor", "served.excellent", "panel.poor", "panel.excellent", "auc_poor", "own_threshold.yield")
# Okabe and Ito's colours, apart for colour-blind eyes too; ablations of ours are broken lines.
_LOOKS = {
    "none": ("#6b7280", ""),
    "published": ("#d55e00", ""),
    "repaired": ("#e69f00", ""),
    "no-soft-labels": ("#56b4e9", "5 3"),
    "no-policy": ("#cc79a7", "5 3"),
    "no-lower-bound": ("#009e73", "5 3"),
    "ours": ("#0072b2", ""),
    "oracle": ("#111827", "1 4"),
}
_WIDTH, _HEIGHT = 330, 250  # of one plot
_COLUMNS = 3
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 34, 34  # margins of a plot
_HEADER, _LEGEND_ROW = 34, 20
_TEXT = "#1f2937"


@dataclass(frozen=True)
class _Axis:
    """Vertical axis of one plot."""

    low: float
    high: float
    step: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "_Axis":
        low, high = min(values), max(values)
        step = next(each for each in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0) if high - low <= 6 * each)
        return cls(step * (low // step), step * -(-high // step) if high > low else high + step, step)

    @property
    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + number * self.step for number in range(count + 1)]


def curves(summary: Mapping[str, Any]) -> str:
    """The SVG; figures that no seed has are left out."""
    figures = [figure for figure in FIGURES if figure.key in _DRAWN and _values(summary, figure)]
    arms = list(summary["arms"])
    rows = -(-len(figures) // _COLUMNS)
    legend_rows = -(-len(arms) // _COLUMNS)
    width, height = _COLUMNS * _WIDTH, _HEADER + rows * _HEIGHT + legend_rows * _LEGEND_ROW + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(LABEL)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="14" y="22" fill="{_TEXT}" font-size="13">{escape(_heading(summary))}</text>',
    ]
    for number, figure in enumerate(figures):
        row, column = divmod(number, _COLUMNS)
        parts.append(f'<g transform="translate({column * _WIDTH},{_HEADER + row * _HEIGHT})">')
        parts += [*_plot(summary, figure), "</g>"]
    parts += _legend(arms, _HEADER + rows * _HEIGHT + 10)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _heading(summary: Mapping[str, Any]) -> str:
    settings = summary["settings"]
    number = len(summary["seeds"])
    seeds = "1 seed" if number == 1 else f"{number} seeds, bands 95 %"
    return f"{LABEL} Panel {settings['panel']}, {seeds}, every arm serves its best {percent(settings['serve'])}."


def _values(summary: Mapping[str, Any], figure: Figure) -> list[float]:
    found = [entry[figure.key] for entries in summary["arms"].values() for entry in entries]
    return [each["mean"] for each in found if each["mean"] is not None]


def _plot(summary: Mapping[str, Any], figure: Figure) -> list[str]:
    axis = _Axis.of(_values(summary, figure))
    rounds = summary["settings"]["rounds"]

    def x(number: float) -> float:
        return round(_LEFT + number / rounds * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        share = (min(max(value, axis.low), axis.high) - axis.low) / (axis.high - axis.low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [f'<text x="{_LEFT}" y="20" fill="{_TEXT}">{escape(figure.title)}</text>']
    for tick in axis.ticks:
        label = percent(tick, 0) if figure.as_percent else f"{tick:.2f}"
        parts.append(f'<path d="M{_LEFT} {y(tick)}H{_WIDTH - _RIGHT}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4}" text-anchor="end" fill="{_TEXT}">{label}</text>')
    for number in range(rounds + 1):
        text = f'<text x="{x(number)}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle" fill="{_TEXT}">'
        parts.append(f"{text}{number}</text>")
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 3}" text-anchor="middle" fill="{_TEXT}">round</text>')
    for arm, entries in summary["arms"].items():
        known = [(entry["round"], entry[figure.key]) for entry in entries if entry[figure.key]["mean"] is not None]
        parts += _line(arm, [(x(number), found) for number, found in known], y)
    return parts


def _line(arm: str, points: list[tuple[float, Mapping[str, Any]]], y) -> list[str]:
    """An arm's means, and for ours and the arms without ablations the band of its interval."""
    if not points:
        return []
    colour, dashes = _LOOKS[arm]
    parts = []
    banded = [(x, found) for x, found in points if found["low"] is not None]
    if banded and not dashes:
        edge = [f"{x},{y(found['high'])}" for x, found in banded]
        edge += [f"{x},{y(found['low'])}" for x, found in reversed(banded)]
        parts.append(f'<polygon points="{" ".join(edge)}" fill="{colour}" fill-opacity="0.12"/>')
    path = " ".join(f"{x},{y(found['mean'])}" for x, found in points)
    width = 3 if arm == OURS else 1.75
    look = f'fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"'
    parts.append(f'<polyline points="{path}" {look}/>')
    if not dashes:
        parts += [f'<circle cx="{x}" cy="{y(found["mean"])}" r="3" fill="{colour}"/>' for x, found in points]
    return parts


def _legend(arms: Sequence[str], top: float) -> list[str]:
    parts = []
    for number, arm in enumerate(arms):
        row, column = divmod(number, _COLUMNS)
        left, middle = 14 + column * _WIDTH, top + row * _LEGEND_ROW + 8
        colour, dashes = _LOOKS[arm]
        width = 3 if arm == OURS else 1.75
        parts.append(
            f'<path d="M{left} {middle}h26" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>'
        )
        parts.append(f'<text x="{left + 34}" y="{middle + 4}" fill="{_TEXT}">{escape(ARMS[arm])}</text>')
    return parts
