"""How the agreement page shows a study's report: names for pseudonyms, plain words, and places on small plots."""

import re
from dataclasses import dataclass
from typing import Any

from medsyn.percent import percent
from ratings.agreement.estimate import Estimate
from ratings.agreement.readers import IntraReaderReport, ReaderAgainstReference
from ratings.dashboard import stacked
from ratings.export import pseudonym
from ratings.models import Grade, Study
from ratings.study_report import ImageGroups, ReaderConfusion, RealAgainstSynthetic, StudyReport

_PLOT_WIDTH, _PLOT_MARGIN = 320, 8  # units of the plot's viewBox
_TENTATIVE, _RELIABLE = 0.667, 0.8  # Krippendorff (2013), section 12.4
_SHADES = 10
_WIDE = 0.2  # of the interval of a probability: more says little


@dataclass(frozen=True)
class Scale:
    """The axis that one column of plots shares."""

    low: float
    high: float
    mark: float  # where a small stroke stands: no agreement, no difference

    def place(self, value: float) -> str:
        """x in the plot, as SVG wants it in every language; values beyond the axis stand at its end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return f"{_PLOT_MARGIN + share * (_PLOT_WIDTH - 2 * _PLOT_MARGIN):.1f}"


COEFFICIENT = Scale(-0.25, 1.0, 0.0)
BIAS = Scale(-1.0, 1.0, 0.0)
SUPERIORITY = Scale(0.0, 1.0, 0.5)
RIGHT = Scale(0.0, 1.0, 1 / 3)  # by lot among three grades
SHARE = Scale(0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Figure:
    """An estimate with its place on a plot."""

    estimate: Estimate
    scale: Scale
    reason: str

    @property
    def x(self) -> str:
        return self.scale.place(self.estimate.estimate)

    @property
    def x_low(self) -> str:
        return self.scale.place(self.estimate.low)

    @property
    def x_high(self) -> str:
        return self.scale.place(self.estimate.high)

    @property
    def x_mark(self) -> str:
        return self.scale.place(self.scale.mark)


@dataclass(frozen=True)
class Coefficient:
    """A row of the agreement table."""

    label: str
    meaning: str
    figure: Figure


@dataclass(frozen=True)
class HeatCell:
    """A cell of a small heat table."""

    percent: float  # 0 to 100
    shade: int  # 0 to 10


@dataclass(frozen=True)
class CountCell:
    """A cell of a small heat table of numbers of images."""

    count: int
    shade: int  # 0 to 10, by the share of the row


class Names:
    """Who is behind the pseudonyms."""

    def __init__(self, study: Study):
        members = study.memberships.select_related("reader").order_by("pk")
        self._members = {pseudonym(str(study.public_id), member.reader_id): member for member in members}

    def of(self, reader: str) -> dict[str, Any]:
        """name, level and is_simulated of a reader."""
        member = self._members[reader]
        return {
            "name": member.reader.get_username(),
            "level": member.expert_level,
            "is_simulated": member.is_simulated,
            "pseudonym": reader,
        }

    def ordered(self, found: tuple) -> list:
        """What has a ``reader``, in the order in which the readers joined."""
        place = {name: number for number, name in enumerate(self._members)}
        return sorted(found, key=lambda each: place[each.reader])

    def in_words(self, reason: str) -> str:
        """The sentence with names for pseudonyms."""
        return re.sub(r"R-[0-9a-f]{12}", lambda match: self.of(match[0])["name"], reason)

    def figure(self, estimate: Estimate, scale: Scale = COEFFICIENT) -> Figure:
        return Figure(estimate, scale, self.in_words(estimate.reason))


def agreement_page(study: Study, report: StudyReport) -> dict[str, Any]:
    """The context of the page; one query."""
    names = Names(study)
    rows = [Coefficient(label, meaning, names.figure(each)) for label, meaning, each in _coefficients(report)]
    return {
        "coefficients": rows[:5],
        "further": rows[5:],
        "verdict": verdict(report.agreement.alpha_ordinal),
        "prevails": _prevails(report),
        "panel": [_reader_row(each, names) for each in names.ordered(report.panel)],
        "gold": [_reader_row(each, names) for each in names.ordered(report.gold)],
        "training": [_reader_row(each, names) for each in names.ordered(report.training)],
        "turing": _turing(report.turing, names),
        "repeats": _repeats(report.repeats, names),
        "confusion": [_heat(each, names) for each in names.ordered(report.confusion)],
        "comparisons": [_comparison(each, names) for each in report.comparisons],
        "grades": [grade.label for grade in Grade],
    }


def verdict(alpha: Estimate) -> str:
    """What ordinal alpha and its interval allow, in plain words."""
    if alpha.estimate is None or alpha.low is None:
        return ""
    if alpha.low >= _RELIABLE:
        return "The readers agree so well that one can stand in for another."
    if alpha.low >= _TENTATIVE:
        return "The readers agree well enough for tentative conclusions from single ratings."
    if alpha.high < _TENTATIVE:
        return (
            "The readers agree too little to conclude anything from single ratings, as is common where experts judge "
            "the quality of images. Have each image read by several, and use the posterior of the three grades."
        )
    return (
        "Whether the readers agree well enough cannot be told yet: the interval of alpha reaches over 0.667. "
        "More images read by two or more narrow it."
    )


def _prevails(report: StudyReport) -> str:
    """A warning where one grade is nine ratings in ten or more."""
    histogram = report.agreement.histogram
    share = max(histogram) / sum(histogram)
    if share < 0.9:
        return ""
    label = Grade(histogram.index(max(histogram)) + 1).label.lower()
    return (
        f"{percent(share, 0)} of the ratings are {label}: alpha and kappa then fall although readers agree, because "
        "little is left to disagree on. Gwet's AC2 and raw agreement tell more here."
    )


def _coefficients(report: StudyReport) -> tuple[tuple[str, str, Estimate], ...]:
    found = report.agreement
    return (
        (
            "Krippendorff's alpha",
            "Ordinal. 1: always the same grade; 0: as if drawn by lot. Uses every image with two ratings or more.",
            found.alpha_ordinal,
        ),
        (
            "Kappa of two readers",
            "Quadratic weights, mean over all pairs. Being two grades apart counts four times one grade.",
            found.kappa_quadratic,
        ),
        (
            "Gwet's AC2",
            "Quadratic weights. Keeps its meaning where one grade prevails.",
            found.ac2,
        ),
        (
            "ICC(2,1)",
            "What one reader's grade is worth, severity included. Uses images that everybody has rated.",
            found.icc.single,
        ),
        (
            "Raw agreement",
            "Share of pairs of ratings of an image that are equal. Some of it is chance.",
            found.exact,
        ),
        ("Raw agreement within one grade", "The same, one grade apart allowed.", found.within_one),
        ("ICC(2,k)", "What the mean of all readers is worth.", found.icc.average),
        ("Krippendorff's alpha, nominal", "Every difference counts the same.", found.alpha_nominal),
        ("Krippendorff's alpha, interval", "Grades taken as numbers.", found.alpha_interval),
        ("Fleiss' kappa", "Every difference counts the same.", found.kappa_fleiss),
        ("Gwet's AC1", "Every difference counts the same.", found.ac1),
    )


def _reader_row(each: ReaderAgainstReference, names: Names) -> dict[str, Any]:
    return {
        "reader": names.of(each.reader),
        "exact": names.figure(each.exact, RIGHT),
        "kappa": names.figure(each.kappa),
        "bias": names.figure(each.bias, BIAS),
        "rows": [(grade.label, _shaded(row)) for grade, row in zip(Grade, each.confusion, strict=True)],
    }


def _shaded(counts: tuple[int, ...]) -> list[CountCell]:
    total = sum(counts) or 1
    return [CountCell(count, round(_SHADES * count / total)) for count in counts]


def _repeats(repeats: IntraReaderReport, names: Names) -> dict[str, Any] | None:
    if not repeats.readers:
        return None
    rows = [
        {
            "reader": names.of(each.reader),
            "kappa": names.figure(each.kappa),
            "exact": names.figure(each.exact),
        }
        for each in names.ordered(repeats.readers)
    ]
    return {"rows": rows, "mean": names.figure(repeats.mean_kappa)}


def _heat(each: ReaderConfusion, names: Names) -> dict[str, Any]:
    rows = [
        (grade.label, [HeatCell(100 * share, round(share * _SHADES)) for share in shares])
        for grade, shares in zip(Grade, each.shares, strict=True)
    ]
    levels = [f"{number} as level {level}" for level, number in enumerate(each.ratings_by_level, start=1) if number]
    return {
        "reader": names.of(each.reader),
        "level": each.expert_level,
        "levels": ", ".join(levels) if len(levels) > 1 else "",
        "rows": rows,
        "overlap": each.overlap,
        "is_prior": each.is_prior,
    }


def _turing(turing: RealAgainstSynthetic | None, names: Names) -> dict[str, Any] | None:
    if turing is None:
        return None
    rows = [
        {
            "reader": names.of(each.reader),
            "auc": names.figure(each.superiority, SUPERIORITY),
            "n_real": each.n_first,
            "n_synthetic": each.n_second,
        }
        for each in names.ordered(turing.readers)
    ]
    shares = [
        (grade.label, names.figure(real, SHARE), names.figure(synthetic, SHARE))
        for grade, real, synthetic in zip(
            Grade, turing.groups.result.first.shares, turing.groups.result.second.shares, strict=True
        )
    ]
    pooled = _comparison(turing.groups, names)
    return {"pooled": pooled, "rows": rows, "shares": shares, "words": turing_in_words(turing)}


def turing_in_words(turing: RealAgainstSynthetic) -> str:
    """What the blind grades of real and synthetic images say; empty where they say nothing."""
    auc = turing.groups.result.superiority
    if auc.estimate is None or auc.low is None:
        return ""
    interval = f"{percent(0.95)} interval {100 * auc.low:.0f} to {100 * auc.high:.0f}"
    pairs = (
        f"shown one real and one synthetic image, readers give the real one the higher grade in "
        f"{100 * auc.estimate:.0f} of 100 pairs ({interval}), equal grades counted half."
    )
    if auc.low > 0.5:
        return f"Real images are graded higher: {pairs}"
    if auc.high < 0.5:
        return f"Synthetic images are graded higher: {pairs}"
    few = " The interval is wide: more real images would narrow it." if auc.high - auc.low > _WIDE else ""
    return f"The grades do not tell real images from synthetic ones: {pairs}{few}"


def _comparison(each: ImageGroups, names: Names) -> dict[str, Any]:
    result = each.result
    return {
        "first": each.first,
        "second": each.second,
        "reason": names.in_words(result.reason),
        "superiority": names.figure(result.superiority, SUPERIORITY),
        "odds_ratio": names.figure(result.odds_ratio),
        "p_value": "" if result.p_value is None else _p_value(result.p_value),
        "sides": [
            (name, group.histogram, stacked(group.histogram))
            for name, group in ((each.first, result.first), (each.second, result.second))
        ],
        "conclusion": _conclusion(each),
        "num_left_out": each.num_left_out,
    }


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _conclusion(each: ImageGroups) -> str:
    found = each.result.superiority
    if found.estimate is None or found.low is None:
        return ""
    if found.low > 0.5:
        return f"Readers grade {each.first} higher."
    if found.high < 0.5:
        return f"Readers grade {each.second} higher."
    return "No difference can be told from these ratings."
