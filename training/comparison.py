"""Two runs side by side: where their configurations differ, what came out, what they saw, and their curves in one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from training import report_figures
from training.curves import Chart, curves
from training.models import TrainingRun
from training.report_figures import Figure, Interval

NAMES = ("A", "B")
# Dashes of the lines: A's and B's, of training and of validation.
_DASHES = {"A": (False, [7, 4]), "B": ([2, 3], [9, 3, 2, 3])}
# Where a run keeps its files; no two runs share it.
_OWN = ("data.ratings_file", "output_dir", "training.checkpoints.save_dir", "latent_cache_dir")


@dataclass(frozen=True)
class Difference:
    """A key of the configuration and what each run has; None: it has no such key."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Pair:
    """One figure of both runs; None where a report lacks it."""

    label: str
    explanation: str
    a: Interval | None
    b: Interval | None

    @property
    def change(self) -> float | None:
        return self.b.value - self.a.value if self.a and self.b else None

    @property
    def are_apart(self) -> bool:
        """Whether the intervals do not touch; where they do, the difference may be chance."""
        if not self.a or not self.b or None in (self.a.low, self.b.low):
            return False
        return self.a.low > self.b.high or self.b.low > self.a.high


def differences(a: TrainingRun, b: TrainingRun) -> list[Difference]:
    """Keys whose values differ, in the order of the configuration; where files lie is left out."""
    first, second = dict(_flat(a.config)), dict(_flat(b.config))
    keys = [*first, *(key for key in second if key not in first)]
    pairs = [Difference(key, first.get(key), second.get(key)) for key in keys if key not in _OWN]
    return [each for each in pairs if each.a != each.b]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def interval_pairs(a: TrainingRun, b: TrainingRun) -> list[Pair]:
    """Figures with intervals of both."""
    sides = [{each.label: each for each in report_figures.intervals(run.figures)} for run in (a, b)]
    labels = dict.fromkeys([*sides[0], *sides[1]])
    pairs = []
    for label in labels:
        one, other = (side.get(label) for side in sides)
        pairs.append(Pair(label, (one or other).explanation, one, other))
    return pairs


def figure_pairs(a: TrainingRun, b: TrainingRun) -> list[tuple[str, Figure | None, Figure | None]]:
    """The other figures, by label."""
    sides = [
        {each.label: each for each in report_figures.figures(run) if each.label not in report_figures.HAVE_INTERVALS}
        for run in (a, b)
    ]
    labels = dict.fromkeys([*sides[0], *sides[1]])
    return [(label, sides[0].get(label), sides[1].get(label)) for label in labels]


def merged_curves(a: TrainingRun, b: TrainingRun, chart: Chart) -> dict[str, Any]:
    """One chart for both: the same quantity has one colour, B's line is dotted."""
    parts = [curves(run, chart) for run in (a, b)]
    x = sorted({place for part in parts for place in part["x"]})
    colours = list(dict.fromkeys(line["label"] for part in parts for line in part["series"]))
    series = []
    for name, part in zip(NAMES, parts, strict=True):
        for line in part["series"]:
            at = dict(zip(part["x"], line["values"], strict=True))
            series.append(
                {
                    "label": f"{name}: {line['label']}",
                    "values": [at.get(place) for place in x],
                    "dash": _DASHES[name][bool(line["dash"])],
                    "colour": colours.index(line["label"]) % 6 + 1,
                }
            )
    return {**parts[0], "x": x, "series": series, "finished": all(part["finished"] for part in parts)}


def data_pairs(a: TrainingRun, b: TrainingRun) -> list[tuple[str, Any, Any]]:
    """What each saw, by name."""
    sides = [dict(_data_of(run)) for run in (a, b)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    return [(name, sides[0].get(name), sides[1].get(name)) for name in names]


def _data_of(run: TrainingRun) -> Iterator[tuple[str, Any]]:
    if run.export:
        yield "Export", str(run.export)
    sha256 = run.figures.get("data", {}).get("ratings_file_sha256") or (run.export and run.export.sha256)
    if sha256:
        yield "Ratings file, sha256", f"{sha256[:16]}…"
    if "train_data_dir" in run.config:
        yield "Dataset", run.config["train_data_dir"]
    yield "Generator", run.generator
    for name, value in report_figures.counts(run.figures):
        yield name.capitalize(), value
