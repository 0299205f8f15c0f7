"""What a study's ratings say: agreement, each reader's part, known grades, groups of images.

What enters is said in ratings.report_data; what each figure means, and by which formula, in docs/agreement.md. Images
that were put in for their known grade are left out where the images themselves are the question: of the coefficients
of agreement and of the comparisons of groups.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from django.core.cache import cache
from django.db.models import Count, Sum

from ratings.agreement.coefficients import AgreementReport, agreement_report
from ratings.agreement.comparison import GroupComparison, ReaderComparison, compare_groups, compare_within_readers
from ratings.agreement.estimate import Bootstrap
from ratings.agreement.rater_model import MIN_OVERLAP, RaterModel, fit_table, usual_levels
from ratings.agreement.readers import (
    IntraReaderReport,
    ReaderAgainstReference,
    against_panel,
    against_truth,
    intra_reader,
)
from ratings.agreement.table import RatingTable
from ratings.models import Rating, Study, StudyImage
from ratings.report_data import ReportData, gold_grades

_KEPT_SECONDS = 3600
_RESAMPLES = 1000
_FEWER_RESAMPLES = 200  # intervals are then rougher in the second decimal, and each figure names the number
_MOST_WORK = 2_000_000  # images x readers^2, what the kappas of all pairs cost; above it fewer resamples
_MOST_GROUPS = 3  # groups of images that are compared, each with each: three pairs


@dataclass(frozen=True)
class ReaderConfusion:
    """What the rater model has learnt of a reader."""

    reader: str  # pseudonym
    expert_level: int  # 1 to 3, under which most of the reader's ratings were given
    ratings_by_level: tuple[int, ...]  # ratings given at level 1, 2 and 3
    shares: tuple[tuple[float, ...], ...]  # (3, 3) P(reader says column | the grade is row)
    overlap: int  # images shared with another rating or of known grade
    is_prior: bool  # too few shared images: what the level suggests, nothing learnt


@dataclass(frozen=True)
class ImageGroups:
    """Two groups of the study's images, compared within readers and among the kinds of image that both have."""

    first: str
    second: str
    result: GroupComparison
    num_left_out: int  # rated images of kinds that only one group has


@dataclass(frozen=True)
class RealAgainstSynthetic:
    """The blind grades of real images, the first group, against those of synthetic ones ("visual Turing")."""

    groups: ImageGroups
    readers: tuple[ReaderComparison, ...]


@dataclass(frozen=True)
class StudyReport:
    """Every figure of the agreement page."""

    num_ratings: int  # first showings and repeats
    num_images: int  # with at least one rating
    num_left_out: int  # ratings of simulated experts in a study of people
    num_gold: int  # rated images of known grade
    num_resamples: int
    agreement: AgreementReport  # without the images put in for their known grade
    num_agreement_images: int  # with at least one rating, of these
    panel: tuple[ReaderAgainstReference, ...]
    gold: tuple[ReaderAgainstReference, ...]  # empty: no rated image has a known grade
    training: tuple[ReaderAgainstReference, ...]  # the training round; empty: nobody has answered one
    repeats: IntraReaderReport
    confusion: tuple[ReaderConfusion, ...]
    prevalence: tuple[float, ...]  # share of each grade among the images, as the rater model sees it
    turing: RealAgainstSynthetic | None  # None: no real image or no synthetic one is rated
    groups: tuple[str, ...]  # sources of the rated synthetic images, largest first
    comparisons: tuple[ImageGroups, ...]


def report_of(study: Study) -> StudyReport | None:
    """The study's figures as its ratings stand now, computed once until they change; None: nothing is rated."""
    key = _cache_key(study)
    report = cache.get(key)
    if report is None:
        report = _computed(study)
        cache.set(key, report, _KEPT_SECONDS)
    return report


def resamples_for(num_images: int, num_readers: int) -> int:
    """How many resamples the intervals get, so that 100,000 ratings take seconds."""
    return _RESAMPLES if num_images * num_readers**2 <= _MOST_WORK else _FEWER_RESAMPLES


def _cache_key(study: Study) -> str:
    """Another one after every event (each raises the revision of its rating by one, and a rating starts at 1), after
    every new known grade, and after a change of who or what the study has."""
    ratings = Rating.objects.filter(assignment__study=study).aggregate(events=Sum("revision"), number=Count("pk"))
    members = list(study.memberships.order_by("pk").values_list("reader_id", flat=True))
    num_images = study.study_images.count()
    state = repr((ratings, members, gold_grades(study), num_images, study.is_simulated))
    return f"ratings.report.{study.public_id}.{hashlib.sha256(state.encode()).hexdigest()}"


def _rater_model(data: ReportData) -> tuple[RaterModel, np.ndarray, np.ndarray]:
    """The model, the level (J,) under which each reader enters, and each reader's ratings by level (J, 3)."""
    by_level = data.ratings.by_level(data.table.readers)
    levels = usual_levels(by_level)
    return fit_table(data.table, levels.tolist(), truth=data.truth_of(data.table)), levels, by_level


def _computed(study: Study) -> StudyReport | None:
    data = ReportData.of(study)
    table = data.table
    if not table.images:
        return None
    bootstrap = Bootstrap(resamples_for(len(table.images), len(table.readers)))
    model, levels, by_level = _rater_model(data)
    drawn = _without_gold(data)
    groups, comparisons = _comparisons(data, bootstrap)
    return StudyReport(
        num_ratings=len(data.ratings),
        num_images=len(table.images),
        num_left_out=_num_left_out(study),
        num_gold=int((data.truth_of(table) > 0).sum()),
        num_resamples=bootstrap.num_resamples,
        agreement=agreement_report(drawn, bootstrap),
        num_agreement_images=int((drawn.grades > 0).any(1).sum()),
        panel=against_panel(table, bootstrap=bootstrap),
        gold=_against_gold(data, bootstrap),
        training=_training(data, bootstrap),
        repeats=_repeats(data, bootstrap),
        confusion=_confusion(data.table.readers, model, levels, by_level),
        prevalence=tuple(model.prevalence.tolist()),
        turing=_real_against_synthetic(data, bootstrap),
        groups=groups,
        comparisons=comparisons,
    )


def _num_left_out(study: Study) -> int:
    if study.is_simulated:
        return 0
    simulated = Rating.objects.exportable(study=study).filter(is_simulated=True)
    return simulated.without_training_round().count()


def _part(table: RatingTable, is_kept: np.ndarray) -> RatingTable:
    """Some of the images; all of the readers."""
    rows = np.flatnonzero(is_kept)
    return RatingTable(table.grades[rows], table.readers, tuple(table.images[row] for row in rows), table.num_grades)


def _is_gold_role(data: ReportData) -> np.ndarray:
    """(N,) put in for its known grade."""
    return np.array([origin.role == StudyImage.Role.GOLD for origin in data.origins_of(data.table)], dtype=bool)


def _without_gold(data: ReportData) -> RatingTable:
    """The images that the study is about: those put in as gold are easy or hard on purpose. All, if it has no
    others."""
    is_gold = _is_gold_role(data)
    return data.table if is_gold.all() else _part(data.table, ~is_gold)


def _against_gold(data: ReportData, bootstrap: Bootstrap) -> tuple[ReaderAgainstReference, ...]:
    """Every reader against the known grades, those apart that the reader was told in a training round."""
    truth = data.truth_of(data.table)
    if not truth.any():
        return ()
    grades = data.table.grades.copy()
    for column, reader in enumerate(data.table.readers):
        told = [(reader, int(image)) in data.taught for image in data.table.images]
        grades[told, column] = 0
    return against_truth(replace(data.table, grades=grades), truth, bootstrap=bootstrap)


def _training(data: ReportData, bootstrap: Bootstrap) -> tuple[ReaderAgainstReference, ...]:
    """What the readers answered in the training round, before they were told."""
    if not len(data.training):
        return ()
    table = data.training.first_showings()
    return against_truth(table, data.truth_of(table), bootstrap=bootstrap)


def _repeats(data: ReportData, bootstrap: Bootstrap) -> IntraReaderReport:
    given = data.ratings
    return intra_reader(given.images, given.readers, given.grades, given.occurrences, bootstrap=bootstrap)


def _confusion(
    readers: tuple[str, ...], model: RaterModel, levels: np.ndarray, by_level: np.ndarray
) -> tuple[ReaderConfusion, ...]:
    columns = (levels, by_level, model.confusion, model.overlap)
    return tuple(
        ReaderConfusion(
            reader=reader,
            expert_level=level,
            ratings_by_level=tuple(numbers),
            shares=tuple(map(tuple, shares)),
            overlap=overlap,
            is_prior=overlap < MIN_OVERLAP,
        )
        for reader, level, numbers, shares, overlap in zip(
            readers, *(column.tolist() for column in columns), strict=True
        )
    )


def _compared(
    data: ReportData, names: tuple[str, str], is_first: np.ndarray, is_second: np.ndarray, bootstrap: Bootstrap
) -> tuple[ImageGroups, RatingTable, np.ndarray]:
    """The comparison, the table it rests on, and which of its images are of the first group. Only kinds of image
    that both groups have: else a difference could be one between a fundus and a chest."""
    kinds = np.array([origin.kind for origin in data.origins_of(data.table)])
    shared = set(kinds[is_first]) & set(kinds[is_second])
    is_either = is_first | is_second
    is_kept = is_either & np.isin(kinds, sorted(shared))
    part = _part(data.table, is_kept)
    result = compare_groups(part, is_first[is_kept], bootstrap=bootstrap)
    groups = ImageGroups(*names, result, num_left_out=int((is_either & ~is_kept).sum()))
    return groups, part, is_first[is_kept]


def _real_against_synthetic(data: ReportData, bootstrap: Bootstrap) -> RealAgainstSynthetic | None:
    is_real = np.array([origin.is_real for origin in data.origins_of(data.table)])
    is_synthetic = ~is_real & ~_is_gold_role(data)
    if not is_real.any() or not is_synthetic.any():
        return None
    names = ("real images", "synthetic images")
    groups, part, is_first = _compared(data, names, is_real, is_synthetic, bootstrap)
    return RealAgainstSynthetic(groups, compare_within_readers(part, is_first, bootstrap=bootstrap))


def _comparisons(data: ReportData, bootstrap: Bootstrap) -> tuple[tuple[str, ...], tuple[ImageGroups, ...]]:
    """The sources of the synthetic images, and the largest of them compared, each with each."""
    origins = data.origins_of(data.table)
    is_drawn = ~_is_gold_role(data) & ~np.array([origin.is_real for origin in origins])
    of_image = np.array([origin.group for origin in origins])
    ordered = tuple(str(name) for name, _ in Counter(of_image[is_drawn].tolist()).most_common())
    found = [
        _compared(data, (first, second), is_drawn & (of_image == first), is_drawn & (of_image == second), bootstrap)[
            0
        ]
        for first, second in combinations(ordered[:_MOST_GROUPS], 2)
    ]
    return ordered, tuple(found)
