"""The figures of a finished run as its page shows them, read from the report that the training process wrote.

Reports of older code may lack figures: what is not there is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from generation.models import GeneratedImage
from generation.release_figures import LABELS
from training.charts import GRADES
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
    ceiling: float | None = None  # what it is measured against: how well experts predict each other

    @property
    def x_ceiling(self) -> float | None:
        return None if self.ceiling is None else _position(self.ceiling)

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
    value: float | int | str  # a share, 0 to 1, where the unit is %
    decimals: int = 0
    unit: str = ""


def _position(value: float) -> float:
    return round(_PLOT_LEFT + _PLOT_WIDTH * value, 1)


_INTERVALS = (
    ("selector.auc_poor", "How well the selector tells poor images from the others."),
    ("policy.auc_poor", "How well the policy's score tells poor images from the others."),
    ("policy.auc_matched_prompt", "How often an image scores higher with its own prompt."),
    ("policy.auc_matched_prompt_same_kind", "The same against prompts of the same kind of image only: harder."),
    ("human_ceiling_auc_poor", "How well one expert's grade predicts another's: the ceiling."),
    ("selector.brier", "Mean squared error of the probability. Lower is better."),
    ("selector.ece", "Gap between stated and observed frequency. Lower is better."),
)
_LIMITED = ("selector.auc_poor", "policy.auc_poor")  # no score can be asked for more than experts agree on


def intervals(report: dict[str, Any]) -> list[Interval]:
    found, ceiling = [], _at(report, "human_ceiling_auc_poor.value")
    for path, explanation in _INTERVALS:
        estimate = _at(report, path)
        if isinstance(estimate, dict) and estimate.get("value") is not None:
            value, low, high = (estimate.get(name) for name in ("value", "low", "high"))
            limit = ceiling if path in _LIMITED else None
            found.append(Interval(LABELS[path], explanation, value, low, high, limit))
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


HAVE_INTERVALS = ("Selector AUC", "Brier score")  # figures that `intervals` shows too


def figures(run: TrainingRun) -> list[Figure]:
    found = []
    for path, label, decimals, unit in _FIGURES[run.purpose]:
        value = _at(run.figures, path)
        if value is not None:
            found.append(Figure(label, value, decimals, unit))
    return found


def headline(run: TrainingRun) -> Figure | None:
    """The one figure that the list of runs shows."""
    wanted = _HEADLINES[run.purpose]
    return next((figure for figure in figures(run) if figure.label == wanted), None)


_COUNTS = {
    "items": "images under a prompt",
    "train": "trained on",
    "calibration": "kept for calibration",
    "held_out": "held out for this report",
    **{f"by_grade_{grade}": f"ratings that say {label}" for grade, label in GRADES.items()},
    **{f"by_expert_level_{level}": f"ratings of expert level {level}" for level in (1, 2, 3)},
}


def counts(report: dict[str, Any]) -> list[tuple[str, Any]]:
    """How many ratings, images, ... the run learnt from, as name and number."""
    found = [("_".join(path), value) for path, value in _leaves(report.get("counts", {}))]
    return [(_COUNTS.get(name, name.replace("_", " ")), value) for name, value in found]


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix: percent of a true grade that the rater gave this grade."""

    percent: float
    shade: int  # 0 to 10: how strongly it is tinted


@dataclass(frozen=True)
class Rater:
    """A rater as the run's rater model sees them."""

    name: str
    level: int | None  # expert level
    ratings: int | None
    overlap: int  # ratings of images that others rated too
    accuracy: float | None
    kappa: float | None  # quadratic weights, against the estimated truth
    is_prior: bool  # too few shared ratings: the matrix is what is assumed of their level
    rows: list[tuple[str, list[Cell]]]  # true grade, share of each grade said


def raters(report: dict[str, Any]) -> list[Rater]:
    """Each rater's confusion matrix (row: estimated truth, column: said) and what follows from it."""
    return [_rater(each) for each in report.get("raters", [])]


def _rater(given: dict[str, Any]) -> Rater:
    matrix = given.get("confusion") or []
    rows = [
        (label, [Cell(100 * share, round(10 * share)) for share in row])
        for label, row in zip(GRADES.values(), matrix, strict=False)  # none in reports of older code
    ]
    optional = {name: given.get(name) for name in ("level", "ratings", "accuracy", "kappa")}
    return Rater(
        given["rater"], overlap=given["overlap"], is_prior=given.get("is_prior", False), rows=rows, **optional
    )


@dataclass(frozen=True)
class Mistake:
    """An image that the run is most wrong about, as the report names it, and its row here if there is one."""

    prompt: str
    grades: list[int]
    selector: float
    policy: float
    why: str  # "passes, rated poor"
    image: GeneratedImage | None


def mistakes(report: dict[str, Any]) -> list[Mistake]:
    """Largest error first; the image is found by the sha256 of its file."""
    listed = report.get("worst", [])
    hashes = [each["image_sha256"] for each in listed]
    found = {image.sha256: image for image in GeneratedImage.objects.filter(sha256__in=hashes)}
    names = ("prompt", "grades", "selector", "policy", "why")
    return [Mistake(**{name: each[name] for name in names}, image=found.get(each["image_sha256"])) for each in listed]


def left_out(report: dict[str, Any]) -> list[tuple[str, int]]:
    """Ratings that the run did not learn from, by reason."""
    reasons = report.get("data", {}).get("left_out") or {}
    return [(name.replace("_", " "), number) for name, number in reasons.items() if number]


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
