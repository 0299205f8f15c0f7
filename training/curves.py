"""The curves of a run's page: read from its metrics, thinned to what a screen can show.

Which curves there are follows from the keys that the training process logged: a chart collects every key with one
of its endings, so a new loss appears without a change here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from training.models import TrainingRun
from training.run_directory import RunDirectory

MAX_POINTS = 1000
_SMOOTHING = 0.98  # weight of the past in the running mean of a loss that jumps from step to step
_MIN_FOR_SMOOTHING = 100  # points


@dataclass(frozen=True)
class Chart:
    """One chart of the page."""

    name: str  # in its URL
    title: str
    y_label: str
    endings: tuple[str, ...]  # a metrics key belongs here if it ends with one of them
    x: str  # "epoch" or "step"

    def holds(self, key: str) -> bool:
        return key.endswith(self.endings)


CHARTS = {
    TrainingRun.Purpose.RLHF: (
        Chart("losses", "Losses", "loss", ("_loss",), "epoch"),
        Chart("auc", "AUC on held-out images", "AUC", ("_auc",), "epoch"),
        Chart("pass-rate", "Pass rate", "share of the training images", ("pass_rate",), "epoch"),
        Chart("learning-rates", "Learning rates", "", ("learning_rate",), "epoch"),
    ),
    TrainingRun.Purpose.FINETUNE: (
        Chart("losses", "Loss", "loss", ("loss",), "step"),
        Chart("learning-rates", "Learning rate", "", ("learning_rate",), "step"),
        Chart("speed", "Speed", "images per second", ("images_per_second",), "step"),
        Chart("gradients", "Gradient norm", "norm before clipping", ("grad_norm",), "step"),
    ),
    TrainingRun.Purpose.UPDATE: (
        Chart("losses", "Losses", "loss", ("_loss",), "step"),
        Chart("gradients", "Gradient norm", "norm before clipping", ("grad_norm",), "step"),
    ),
}


_LABELS = {
    "validation_auc": "Selector",
    "policy_validation_auc": "Policy",
    "grad_norm": "Gradient norm",
}


def chart_of(run: TrainingRun, name: str) -> Chart | None:
    return next((chart for chart in CHARTS[run.purpose] if chart.name == name), None)


def curves(run: TrainingRun, chart: Chart, *, max_points: int = MAX_POINTS) -> dict[str, Any]:
    """The chart as js/chart.js takes it: x, series of equal length, labels, and whether more will come."""
    x, columns = columns_of(RunDirectory(run.path).metrics(), chart)
    series = [
        {"label": label_of(key, chart), "values": values, "dash": "validation" in key and chart.name == "losses"}
        for key, values in columns.items()
    ]
    if chart.x == "step" and chart.name == "losses" and len(x) >= _MIN_FOR_SMOOTHING:
        series += [
            {"label": f"{label_of(key, chart)}, running mean", "values": running_mean(values), "dash": False}
            for key, values in columns.items()
        ]
    for each in series:
        each["values"] = thinned(each["values"], max_points)
    return {
        "x": [span[-1] for span in _spans(x, max_points)],
        "series": series,
        "x_label": chart.x,
        "y_label": chart.y_label,
        "finished": run.is_finished,
    }


def columns_of(lines: Iterable[dict[str, Any]], chart: Chart) -> tuple[list, dict[str, list[float | None]]]:
    """x, and by key the values at each x; None where a line has no value. Keys that never have one are left out."""
    rows = []
    for line in lines:
        found = {key: value for key, value in line.items() if chart.holds(key) and value is not None}
        if found and line.get(chart.x) is not None:
            rows.append((line[chart.x], found))
    keys = list(dict.fromkeys(key for _, found in rows for key in found))
    return [x for x, _ in rows], {key: [found.get(key) for _, found in rows] for key in keys}


def thinned(values: Sequence[float | None], max_points: int) -> list[float | None]:
    """At most ``max_points`` values, each the mean of as many neighbours; None where all of them are."""
    means = []
    for span in _spans(values, max_points):
        known = [value for value in span if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def _spans(values: Sequence, max_points: int) -> list[Sequence]:
    size = max(-(-len(values) // max_points), 1)
    return [values[start : start + size] for start in range(0, len(values), size)]


def running_mean(values: Sequence[float | None]) -> list[float | None]:
    """Exponentially weighted mean m_i = a m_(i-1) + (1 - a) v_i, its start corrected by 1 - a^i (as in Adam)."""
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        if value is not None:
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
            weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        means.append(mean / weight if weight else None)
    return means


def label_of(key: str, chart: Chart) -> str:
    """What the chart's title leaves to be said: policy_loss is "Policy" in the chart of losses."""
    if key in _LABELS:
        return _LABELS[key]
    ending = next(ending for ending in chart.endings if key.endswith(ending))
    words = (key.removesuffix(ending) or key).strip("_").replace("_", " ")
    return words[0].upper() + words[1:]
