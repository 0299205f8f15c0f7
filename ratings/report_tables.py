"""The figures of a study as plain tables, for CSV and JSON: readers under the pseudonyms of the exports."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ratings.agreement.estimate import Estimate
from ratings.agreement.readers import ReaderAgainstReference
from ratings.dashboard import StudyFigures
from ratings.export import formula_safe
from ratings.models import Grade
from ratings.study_report import ImageGroups, ReaderConfusion, RealAgainstSynthetic, StudyReport

_ESTIMATE_COLUMNS = ("estimate", "low", "high", "n_images", "n_ratings", "interval", "reason")
PROGRESS_TITLES = {
    "readers": "Progress and grades of each reader",
    "grades": "Ratings by grade",
    "days": "Answers by day and reader",
}
_DONE = ("done", "total", "training_done", "training_total")
_GRADES = tuple(grade.label.lower() for grade in Grade)


@dataclass(frozen=True)
class ReportTable:
    """One table of a study."""

    name: str  # of its file
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]  # numbers, texts and None

    def as_records(self) -> list[dict[str, Any]]:
        """One dictionary per row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def as_csv(self) -> str:
        """With a header; None is an empty cell."""
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer)
        writer.writerow(self.columns)
        writer.writerows([_cell(value) for value in row] for row in self.rows)
        return buffer.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return formula_safe(value) if isinstance(value, str) else value


def _estimate(estimate: Estimate) -> tuple[Any, ...]:
    return (
        estimate.estimate,
        estimate.low,
        estimate.high,
        estimate.n_images,
        estimate.n_ratings,
        estimate.method,
        estimate.reason,
    )


def _measures(name: str, title: str, subject: tuple[str, ...], rows: Iterator[tuple]) -> ReportTable:
    """A table of estimates: the subject's columns, the measure's name, the estimate."""
    shown = tuple((*row[:-1], *_estimate(row[-1])) for row in rows)
    return ReportTable(name, title, (*subject, "measure", *_ESTIMATE_COLUMNS), shown)


def progress_tables(figures: StudyFigures) -> tuple[ReportTable, ...]:
    """What the study's page shows while it is read."""
    readers = ReportTable(
        "readers",
        PROGRESS_TITLES["readers"],
        ("reader", "expert_level", "simulated", *_DONE, *_GRADES, "seconds_per_image", "seconds_left"),
        tuple(
            (
                row.pseudonym,
                row.expert_level,
                int(row.is_simulated),
                row.done,
                row.total,
                row.training_done,
                row.training_total,
                *row.grades,
                row.seconds_per_image,
                row.seconds_left,
            )
            for row in figures.readers
        ),
    )
    grades = ReportTable(
        "grades",
        PROGRESS_TITLES["grades"],
        ("grade", "label", "ratings", "percent"),
        tuple((bar.value, bar.label, bar.count, bar.percent) for bar in figures.bars),
    )
    days = ReportTable(
        "days",
        PROGRESS_TITLES["days"],
        ("reader", "day", "answers"),
        tuple(
            (row.pseudonym, day.isoformat(), number)
            for row in figures.readers
            for day, number in zip(figures.days, row.per_day, strict=True)
        ),
    )
    return readers, grades, days


def report_tables(report: StudyReport) -> tuple[ReportTable, ...]:
    """What the agreement page shows."""
    return (
        _measures("agreement", "Agreement of the readers", (), _coefficients(report)),
        _measures("gold", "Each reader against known grades", ("reader",), _against(report.gold, _KNOWN, _KNOWN)),
        _counts("gold_confusion", "Each reader against known grades, images", "known", report.gold),
        _measures("training", "The training round", ("reader",), _against(report.training, _KNOWN, _KNOWN)),
        _counts("training_confusion", "The training round, images", "known", report.training),
        _measures("panel", "Each reader against the others", ("reader",), _against(report.panel, *_OTHERS)),
        _counts("panel_confusion", "Each reader against the others' majority, images", "majority", report.panel),
        _measures("repeats", "Each reader against their own repeats", ("reader",), _repeats(report)),
        _confusion(report.confusion),
        _measures("real_synthetic", "Real against synthetic images", (), _turing(report.turing)),
        _turing_readers(report.turing),
        _measures("comparisons", "Groups of images", ("first", "second"), _compared(report.comparisons)),
        _tests(report.comparisons),
        _compared_readers(report.comparisons),
    )


def _coefficients(report: StudyReport) -> Iterator[tuple[str, Estimate]]:
    found = report.agreement
    yield "raw agreement", found.exact
    yield "raw agreement within one grade", found.within_one
    yield "Krippendorff's alpha, ordinal", found.alpha_ordinal
    yield "Krippendorff's alpha, nominal", found.alpha_nominal
    yield "Krippendorff's alpha, interval", found.alpha_interval
    yield "mean quadratic-weighted kappa of pairs", found.kappa_quadratic
    yield "Fleiss' kappa", found.kappa_fleiss
    yield "Gwet's AC1", found.ac1
    yield "Gwet's AC2, quadratic weights", found.ac2
    yield "ICC(2,1)", found.icc.single
    yield "ICC(2,k)", found.icc.average


_KNOWN = "the known grade"
_OTHERS = ("the majority", "the others' mean")


def _against(
    readers: tuple[ReaderAgainstReference, ...], grade: str, mean: str
) -> Iterator[tuple[str, str, Estimate]]:
    """Of each reader, with the reference's names: for its grade, and for what the bias is reckoned from."""
    for each in readers:
        yield each.reader, f"raw agreement with {grade}", each.exact
        yield each.reader, f"quadratic-weighted kappa with {grade}", each.kappa
        yield each.reader, f"bias against {mean}, grades", each.bias


def _counts(name: str, title: str, reference: str, readers: tuple[ReaderAgainstReference, ...]) -> ReportTable:
    rows = tuple(
        (each.reader, label, *row) for each in readers for label, row in zip(_GRADES, each.confusion, strict=True)
    )
    return ReportTable(name, title, ("reader", reference, *_GRADES), rows)


def _repeats(report: StudyReport) -> Iterator[tuple[str, str, Estimate]]:
    for each in report.repeats.readers:
        yield each.reader, "quadratic-weighted kappa", each.kappa
        yield each.reader, "raw agreement", each.exact
        yield each.reader, "raw agreement within one grade", each.within_one
    yield "mean of the readers", "quadratic-weighted kappa", report.repeats.mean_kappa


def _confusion(readers: tuple[ReaderConfusion, ...]) -> ReportTable:
    rows = tuple(
        (each.reader, each.expert_level, *each.ratings_by_level, each.overlap, int(each.is_prior), label, *row)
        for each in readers
        for label, row in zip(_GRADES, each.shares, strict=True)
    )
    by_level = ("ratings_level_1", "ratings_level_2", "ratings_level_3")
    columns = ("reader", "expert_level", *by_level, "shared_images", "prior_only", "grade", *_GRADES)
    return ReportTable("rater_model", "Rater model: P(reader says column | grade)", columns, rows)


def _turing(turing: RealAgainstSynthetic | None) -> Iterator[tuple[str, Estimate]]:
    if turing is None:
        return
    result = turing.groups.result
    yield "P(real graded higher) + half P(equal)", result.superiority
    yield "common odds ratio of a higher grade", result.odds_ratio
    for side, group in (("real", result.first), ("synthetic", result.second)):
        for label, share in zip(_GRADES, group.shares, strict=True):
            yield f"share of {label}, {side}", share


def _turing_readers(turing: RealAgainstSynthetic | None) -> ReportTable:
    rows = tuple(
        (each.reader, each.n_first, each.n_second, *_estimate(each.superiority))
        for each in (turing.readers if turing else ())
    )
    columns = ("reader", "n_real", "n_synthetic", *_ESTIMATE_COLUMNS)
    return ReportTable("real_synthetic_readers", "P(real graded higher) + half P(equal), by reader", columns, rows)


def _compared(comparisons: tuple[ImageGroups, ...]) -> Iterator[tuple[str, str, str, Estimate]]:
    for each in comparisons:
        yield each.first, each.second, "P(first graded higher) + half P(equal)", each.result.superiority
        yield each.first, each.second, "common odds ratio of a higher grade", each.result.odds_ratio
        for side, group in (("first", each.result.first), ("second", each.result.second)):
            for label, share in zip(_GRADES, group.shares, strict=True):
                yield each.first, each.second, f"share of {label}, {side}", share


def _tests(comparisons: tuple[ImageGroups, ...]) -> ReportTable:
    rows = tuple((each.first, each.second, each.result.p_value, each.result.reason) for each in comparisons)
    return ReportTable(
        "comparison_tests", "Van Elteren's test, two-sided", ("first", "second", "p_value", "reason"), rows
    )


def _compared_readers(comparisons: tuple[ImageGroups, ...]) -> ReportTable:
    rows = tuple(
        (each.first, each.second, one.reader, one.superiority, one.n_first, one.n_second)
        for each in comparisons
        for one in each.result.readers
    )
    columns = ("first", "second", "reader", "superiority", "n_first", "n_second")
    return ReportTable("comparison_readers", "Groups of images by reader", columns, rows)
