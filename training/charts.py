"""The drawings of a run's report as geometry: what templates/training/_*.html put into SVG.

Built from the report that the training process wrote; where a report lacks a part there is no drawing of it. Lengths
are units of the view box, y pointing down. Every drawing carries its numbers, for the table below it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GRADES = {"1": "poor", "2": "acceptable", "3": "excellent"}
NETWORKS = {"selector": "Selector", "policy": "Policy"}
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ROW_HEIGHT, _ROW_GAP = 62.0, 14.0  # of one grade in a histogram
_DOT_LEAST, _DOT_MOST = 3.0, 7.0  # radii


@dataclass(frozen=True)
class Frame:
    """A plot whose both axes go from 0 to 1."""

    width: float = 400
    height: float = 280
    left: float = 46
    right: float = 14
    top: float = 12
    bottom: float = 40

    @property
    def x_end(self) -> float:
        return self.width - self.right

    @property
    def y_end(self) -> float:
        return self.height - self.bottom

    @property
    def x_middle(self) -> float:
        return (self.left + self.x_end) / 2

    @property
    def y_middle(self) -> float:
        return (self.top + self.y_end) / 2

    def x(self, value: float) -> float:
        return round(self.left + value * (self.x_end - self.left), 1)

    def y(self, value: float) -> float:
        return round(self.y_end - value * (self.y_end - self.top), 1)

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        return [(self.x(value), f"{value:g}") for value in _TICKS]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        return [(self.y(value), f"{value:g}") for value in _TICKS]


@dataclass(frozen=True)
class ReliabilityBin:
    """Ratings whose image had a stated probability within [low, high)."""

    low: float
    high: float
    count: int  # ratings
    mean: float  # stated
    observed: float  # share of them above poor
    observed_low: float | None
    observed_high: float | None
    x: float
    y: float
    y_low: float | None
    y_high: float | None
    radius: float


@dataclass(frozen=True)
class Reliability:
    frame: Frame
    bins: list[ReliabilityBin]


def reliability(report: Mapping[str, Any]) -> Reliability | None:
    """The selector's stated against observed frequency; the area of a dot grows with its number of ratings."""
    given = (report.get("reliability") or {}).get("selector")
    if not given:
        return None
    frame, most = Frame(), max(each["count"] for each in given)
    return Reliability(frame, [_bin(each, frame, most) for each in given])


def _bin(given: Mapping[str, Any], frame: Frame, most: int) -> ReliabilityBin:
    ends = {name: given.get(name) for name in ("observed_low", "observed_high")}
    return ReliabilityBin(
        **{name: given[name] for name in ("low", "high", "count", "mean", "observed")},
        **ends,
        x=frame.x(given["mean"]),
        y=frame.y(given["observed"]),
        y_low=None if ends["observed_low"] is None else frame.y(ends["observed_low"]),
        y_high=None if ends["observed_high"] is None else frame.y(ends["observed_high"]),
        radius=round(_DOT_LEAST + (_DOT_MOST - _DOT_LEAST) * (given["count"] / most) ** 0.5, 1),
    )


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class HistogramRow:
    """Scores of the ratings of one grade."""

    grade: str  # "1"
    label: str  # "poor"
    count: int  # ratings
    counts: list[int]  # by score
    bars: list[Bar]
    y_text: float
    y_end: float


@dataclass(frozen=True)
class Histogram:
    name: str  # "selector"
    title: str
    frame: Frame
    rows: list[HistogramRow]
    edges: list[tuple[float, float]]  # of the bins
    x_threshold: float | None

    @property
    def table(self) -> list[tuple[float, float, list[int]]]:
        """Each bin: its ends, and its number of ratings of each grade."""
        return [(*ends, [row.counts[i] for row in self.rows]) for i, ends in enumerate(self.edges)]


def histograms(report: Mapping[str, Any], threshold: float | None) -> list[Histogram]:
    """Of selector and policy, one row of bars for each grade, drawn as shares of that grade's ratings."""
    given = report.get("histograms") or {}
    return [_histogram(name, given[name], threshold) for name in NETWORKS if given.get(name)]


def _histogram(name: str, given: Mapping[str, Any], threshold: float | None) -> Histogram:
    grades = [grade for grade in GRADES if grade in given["by_grade"]]
    height = len(grades) * (_ROW_HEIGHT + _ROW_GAP) + 44
    frame = Frame(left=14, height=height, top=2, bottom=40)
    edges = list(zip(given["edges"][:-1], given["edges"][1:], strict=True))
    tallest = max(_share(count, given["by_grade"][grade]) for grade in grades for count in given["by_grade"][grade])
    rows = [
        _row(grade, given["by_grade"][grade], place, edges, frame, tallest or 1) for place, grade in enumerate(grades)
    ]
    x_threshold = None if threshold is None else frame.x(threshold)
    return Histogram(name, f"{NETWORKS[name]}: score by grade", frame, rows, edges, x_threshold)


def _share(count: int, counts: Sequence[int]) -> float:
    return count / sum(counts) if sum(counts) else 0.0


def _row(
    grade: str, counts: list[int], place: int, edges: list[tuple[float, float]], frame: Frame, tallest: float
) -> HistogramRow:
    y_end = frame.top + (place + 1) * (_ROW_HEIGHT + _ROW_GAP)
    bars = []
    for (low, high), count in zip(edges, counts, strict=True):
        height = round(_ROW_HEIGHT * _share(count, counts) / tallest, 1)
        width = max(frame.x(high) - frame.x(low) - 1.5, 1)
        if count:
            bars.append(Bar(frame.x(low) + 0.75, round(y_end - height, 1), round(width, 1), height))
    return HistogramRow(grade, GRADES[grade], sum(counts), counts, bars, round(y_end - _ROW_HEIGHT + 6, 1), y_end)


@dataclass(frozen=True)
class CurveLine:
    name: str  # key of the report's pass curve; also its look
    label: str
    points: str  # of an SVG polyline


@dataclass(frozen=True)
class PassCurve:
    frame: Frame
    lines: list[CurveLine]
    rows: list[Mapping[str, float | None]]  # the report's own
    threshold: float | None
    x_threshold: float | None
    at_threshold: Mapping[str, float | None] | None  # the row nearest to it


_PASS_LINES = {
    "both": "pass selector and policy",
    "selector": "pass the selector",
    "poor_both": "poor among those that pass both",
    "poor_selector": "poor among those that pass the selector",
}


def pass_curve(report: Mapping[str, Any], threshold: float | None) -> PassCurve | None:
    rows = report.get("pass_curve")
    if not rows:
        return None
    frame = Frame()
    lines = []
    for name, label in _PASS_LINES.items():
        known = [row for row in rows if row.get(name) is not None]
        points = " ".join(f"{frame.x(row['threshold'])},{frame.y(row[name])}" for row in known)
        if known:
            lines.append(CurveLine(name, label, points))
    nearest = None if threshold is None else min(rows, key=lambda row: abs(row["threshold"] - threshold))
    return PassCurve(frame, lines, rows, threshold, None if threshold is None else frame.x(threshold), nearest)


@dataclass(frozen=True)
class Share:
    """A stretch of the bar that shows where the time went."""

    label: str
    seconds: float
    percent: float
    x: float
    width: float


_STEPS = {
    "read": "Reading the images",
    "features": "Features of the encoder",
    "stage1": "Stage 1",
    "stage2": "Stage 2",
    "score": "Scoring the held-out images",
    "report": "Figures of this report",
}


def timing(report: Mapping[str, Any]) -> list[Share]:
    """Where the run's time went, step by step; widths in percent of the bar."""
    told = report.get("timing") or {}
    order = [*_STEPS, *(name for name in told if name not in _STEPS)]
    given = {name: told[name] for name in order if told.get(name)}
    total = sum(given.values())
    shares, x = [], 0.0
    for name, seconds in given.items():
        percent = 100 * seconds / total
        label = _STEPS.get(name, name.replace("_", " ").capitalize())
        shares.append(Share(label, seconds, percent, round(x, 2), round(percent, 2)))
        x += percent
    return shares
