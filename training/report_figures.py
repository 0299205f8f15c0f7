"""The figures of a finished run as its page shows them, read from the report that the training process wrote.

Reports of older code may lack figures: what is not there is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from training.models import TrainingRun

_PLOT_LEFT, _PLOT_WIDTH = 8, 304  # units of the plot's view box, 320 wide


@dataclass(frozen=True)
class Interval:
    """A figure between 0 and 1 with the ends of its 95 % interval, and where they lie in the plot."""

    label: str
    explanation: str
    value: float
    low: float | None
    high: float | None

    @property
    def x(self) -> float:
        return _position(self.value)

    @property
    def x_low(self) -> float | None:
        return None if self.low is None else _position(self.low)

    @property
    def x_high(self) -> float | None:
        return None if self.high is None else _position(self.high)


@dataclass(frozen=True)
class Figure:
    """One number of the row of figures."""

    label: str
    value: float | int | str
    decimals: int = 0
    unit: str = ""


def _position(value: float) -> float:
    return round(_PLOT_LEFT + _PLOT_WIDTH * value, 1)


_INTERVALS = (
    ("selector.auc_poor", "Selector: AUC, poor", "How well the selector tells poor images from the others."),
    ("policy.auc_poor", "Policy: AUC, poor", "How well the policy's score tells poor images from the others."),
    ("policy.auc_matched_prompt", "Policy: AUC, own prompt", "How often an image scores higher with its own prompt."),
    ("human_ceiling_auc_poor", "Experts: AUC, poor", "How well one expert's grade predicts another's: the ceiling."),
    ("selector.brier", "Selector: Brier score", "Mean squared error of the probability. Lower is better."),
    ("selector.ece", "Selector: calibration error", "Gap between stated and observed frequency. Lower is better."),
)


def intervals(report: dict[str, Any]) -> list[Interval]:
    found = []
    for path, label, explanation in _INTERVALS:
        estimate = _at(report, path)
        if isinstance(estimate, dict) and estimate.get("value") is not None:
            found.append(Interval(label, explanation, estimate["value"], estimate.get("low"), estimate.get("high")))
    return found


_FIGURES = {
    TrainingRun.Purpose.RLHF: (
        ("selector.auc_poor.value", "Selector AUC", 3, ""),
        ("selector.brier.value", "Brier score", 3, ""),
        ("pass_rate", "Pass rate", 0, "%"),
        ("held_out_share_served.share", "Would be served", 0, "%"),
        ("counts.ratings", "Ratings", 0, ""),
        ("counts.images", "Images", 0, ""),
        ("seconds", "Time", 0, "s"),
    ),
    TrainingRun.Purpose.FINETUNE: (
        ("steps", "Steps", 0, ""),
        ("num_rows", "Images in the dataset", 0, ""),
        ("first_loss", "Loss at first", 4, ""),
        ("last_loss", "Loss at last", 4, ""),
        ("images_per_second", "Speed", 1, "images/s"),
        ("seconds", "Time", 0, "s"),
    ),
    TrainingRun.Purpose.UPDATE: (
        ("poor.before.value", "Poor before", 1, "%"),
        ("poor.after.value", "Poor after", 1, "%"),
        ("diversity.relative", "Diversity, change", 1, "%"),
        ("coverage.relative", "Coverage, change", 1, "%"),
        ("copies.after.value", "Copies after", 1, "%"),
        ("images", "Images compared", 0, ""),
        ("seconds", "Time", 0, "s"),
    ),
}


_HEADLINES = {
    TrainingRun.Purpose.RLHF: "Selector AUC",
    TrainingRun.Purpose.FINETUNE: "Loss at last",
    TrainingRun.Purpose.UPDATE: "Poor after",
}


def figures(run: TrainingRun) -> list[Figure]:
    found = []
    for path, label, decimals, unit in _FIGURES[run.purpose]:
        value = _at(run.figures, path)
        if value is not None:
            found.append(Figure(label, 100 * value if unit == "%" else value, decimals, unit))
    return found


def headline(run: TrainingRun) -> Figure | None:
    """The one figure that the list of runs shows."""
    wanted = _HEADLINES[run.purpose]
    return next((figure for figure in figures(run) if figure.label == wanted), None)


def counts(report: dict[str, Any]) -> list[tuple[str, Any]]:
    """How many ratings, images, ... the run learnt from, as name and number."""
    return [(" ".join(path).replace("_", " "), value) for path, value in _leaves(report.get("counts", {}))]


def raters(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each rater: name, ratings shared with others, percent graded right of poor, acceptable, excellent images."""
    return [
        {
            "rater": each["rater"],
            "overlap": each["overlap"],
            "shares": [100 * row[grade] for grade, row in enumerate(each["confusion"])],
        }
        for each in report.get("raters", [])
    ]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Sequence[str], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield path, value


def _at(report: dict[str, Any], path: str) -> Any:
    value: Any = report
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
