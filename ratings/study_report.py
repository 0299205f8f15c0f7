"""What a study's ratings say: agreement, each reader's part, groups of images. Four queries, however many readers.

Readers go by the pseudonyms of the exports. Only ratings that stand enter, of first showings outside the training
round (second showings are the repeats); those of simulated experts only where the study is a simulated one.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from django.core.cache import cache
from django.db.models import Count, Sum

from generation.models import GeneratedImage
from ratings.agreement.coefficients import AgreementReport, agreement_report
from ratings.agreement.comparison import GroupComparison, compare_groups
from ratings.agreement.estimate import Bootstrap
from ratings.agreement.rater_model import MIN_OVERLAP, RaterModel, fit_table
from ratings.agreement.readers import IntraReaderReport, ReaderAgainstReference, against_panel, intra_reader
from ratings.agreement.table import RatingTable
from ratings.export import pseudonym
from ratings.models import Assignment, Rating, RatingQuerySet, Study

_KEPT_SECONDS = 3600
_RESAMPLES = 1000
_FEWER_RESAMPLES = 200  # intervals are then rougher in the second decimal, and each figure names the number
_MOST_WORK = 2_000_000  # images x readers^2, what the kappas of all pairs cost; above it fewer resamples
_MOST_GROUPS = 3  # groups of images that are compared, each with each: three pairs


@dataclass(frozen=True)
class ReaderConfusion:
    """What the rater model has learnt of a reader."""

    reader: str  # pseudonym
    expert_level: int  # 1 to 3, of the membership
    shares: tuple[tuple[float, ...], ...]  # (3, 3) P(reader says column | the grade is row)
    overlap: int  # images shared with another rating
    is_prior: bool  # too few shared images: what the level suggests, nothing learnt


@dataclass(frozen=True)
class ImageGroups:
    """Two groups of the study's images, compared within readers."""

    first: str
    second: str
    result: GroupComparison


@dataclass(frozen=True)
class StudyReport:
    """Every figure of the agreement page."""

    num_ratings: int  # first showings and repeats
    num_images: int  # with at least one rating
    num_left_out: int  # ratings of simulated experts in a study of people
    num_resamples: int
    agreement: AgreementReport
    panel: tuple[ReaderAgainstReference, ...]
    repeats: IntraReaderReport
    confusion: tuple[ReaderConfusion, ...]
    prevalence: tuple[float, ...]  # share of each grade among the images, as the rater model sees it
    groups: tuple[str, ...]  # sources of the rated images, largest first
    comparisons: tuple[ImageGroups, ...]


@dataclass(frozen=True)
class _Ratings:
    """One entry per rating (R,)."""

    images: np.ndarray  # primary keys
    readers: np.ndarray  # pseudonyms
    grades: np.ndarray  # 1 to 3
    occurrences: np.ndarray  # 1 first showing, 2 repeat

    def first_showings(self) -> RatingTable:
        first = self.occurrences == 1
        return RatingTable.from_ratings(self.images[first], self.readers[first], self.grades[first])


@dataclass(frozen=True)
class ImagePosterior:
    """What the readers of one image said together."""

    counts: tuple[int, ...]  # ratings by grade, poor first
    posterior: tuple[float, ...]  # probability of each grade


def report_of(study: Study) -> StudyReport | None:
    """The study's figures as its ratings stand now, computed once until they change; None: nothing is rated."""
    key = _cache_key(study)
    report = cache.get(key)
    if report is None:
        report = _computed(study)
        cache.set(key, report, _KEPT_SECONDS)
    return report


def image_posteriors(study: Study) -> dict[int, ImagePosterior]:
    """By image key, rated images only: the same rater model as the report's."""
    table = _load(study).first_showings()
    if not table.images:
        return {}
    posterior = _rater_model(study, table).posterior
    return {
        int(image): ImagePosterior(tuple(counts), tuple(row))
        for image, counts, row in zip(table.images, table.grade_counts.tolist(), posterior.tolist(), strict=True)
    }


def resamples_for(num_images: int, num_readers: int) -> int:
    """How many resamples the intervals get, so that 100,000 ratings take seconds."""
    return _RESAMPLES if num_images * num_readers**2 <= _MOST_WORK else _FEWER_RESAMPLES


def _cache_key(study: Study) -> str:
    """Another one after every event: each raises the revision of its rating by one, and a rating starts at 1."""
    ratings = Rating.objects.filter(assignment__study=study).aggregate(events=Sum("revision"), number=Count("pk"))
    members = list(study.memberships.order_by("pk").values_list("reader_id", "expert_level"))
    state = repr((ratings, members, study.is_simulated))
    return f"ratings.report.{study.public_id}.{hashlib.sha256(state.encode()).hexdigest()}"


def counted(study: Study) -> RatingQuerySet:
    """The ratings that the report rests on."""
    ratings = Rating.objects.exportable(study=study, include_simulated=study.is_simulated)
    return ratings.exclude(assignment__kind=Assignment.Kind.TRAINING)


def _load(study: Study) -> _Ratings:
    rows = counted(study).order_by("pk")
    rows = rows.values_list("assignment__image_id", "assignment__reader_id", "value", "assignment__occurrence")
    columns = np.array(list(rows), dtype=np.int64).reshape(-1, 4).T
    images, readers, grades, occurrences = columns
    keys, place = np.unique(readers, return_inverse=True)
    names = np.array([pseudonym(str(study.public_id), key) for key in keys.tolist()], dtype=str)
    return _Ratings(images, names[place] if len(names) else np.zeros(0, dtype=str), grades, occurrences)


def _levels(study: Study) -> dict[str, int]:
    """Expertise by pseudonym."""
    members = study.memberships.values_list("reader_id", "expert_level")
    return {pseudonym(str(study.public_id), key): level for key, level in members}


def _rater_model(study: Study, table: RatingTable) -> RaterModel:
    levels = _levels(study)
    return fit_table(table, [levels[reader] for reader in table.readers])


def _computed(study: Study) -> StudyReport | None:
    ratings = _load(study)
    table = ratings.first_showings()
    if not table.images:
        return None
    bootstrap = Bootstrap(resamples_for(len(table.images), len(table.readers)))
    model = _rater_model(study, table)
    groups = _groups(study, table)
    return StudyReport(
        num_ratings=len(ratings.grades),
        num_images=len(table.images),
        num_left_out=_num_left_out(study),
        num_resamples=bootstrap.num_resamples,
        agreement=agreement_report(table, bootstrap),
        panel=against_panel(table, bootstrap=bootstrap),
        repeats=_repeats(ratings, bootstrap),
        confusion=_confusion(table, model, _levels(study)),
        prevalence=tuple(model.prevalence.tolist()),
        groups=tuple(name for name, _ in Counter(groups).most_common()),
        comparisons=_comparisons(table, groups, bootstrap),
    )


def _num_left_out(study: Study) -> int:
    if study.is_simulated:
        return 0
    return Rating.objects.exportable(study=study).filter(is_simulated=True).count()


def _repeats(ratings: _Ratings, bootstrap: Bootstrap) -> IntraReaderReport:
    return intra_reader(ratings.images, ratings.readers, ratings.grades, ratings.occurrences, bootstrap=bootstrap)


def _confusion(table: RatingTable, model: RaterModel, levels: dict[str, int]) -> tuple[ReaderConfusion, ...]:
    return tuple(
        ReaderConfusion(
            reader=reader,
            expert_level=levels[reader],
            shares=tuple(map(tuple, shares)),
            overlap=overlap,
            is_prior=overlap < MIN_OVERLAP,
        )
        for reader, shares, overlap in zip(
            table.readers, model.confusion.tolist(), model.overlap.tolist(), strict=True
        )
    )


def _groups(study: Study, table: RatingTable) -> list[str]:
    """(N,) where each image of the table comes from: imported, a release, or a model without one."""
    rows = GeneratedImage.objects.filter(study_images__study=study).values_list(
        "pk", "source", "release__name", "release__digest", "model_name", "weights_sha256"
    )
    names = {key: _group_name(*origin) for key, *origin in rows.order_by().iterator()}
    return [names.get(int(image), "no longer in the study") for image in table.images]


def _group_name(source: str, release: str | None, digest: str | None, model: str, weights: str) -> str:
    if source == GeneratedImage.Source.IMPORTED:
        return "imported images"
    if digest:
        return f"release {release} ({digest[:8]})"
    return f"{model or 'unnamed model'} ({weights[:8]})" if weights else model or "unnamed model"


def _comparisons(table: RatingTable, groups: list[str], bootstrap: Bootstrap) -> tuple[ImageGroups, ...]:
    largest = [name for name, _ in Counter(groups).most_common(_MOST_GROUPS)]
    of_image = np.array(groups)
    found = []
    for first, second in combinations(largest, 2):
        rows = np.flatnonzero((of_image == first) | (of_image == second))
        part = RatingTable(table.grades[rows], table.readers, tuple(table.images[row] for row in rows))
        found.append(ImageGroups(first, second, compare_groups(part, of_image[rows] == first, bootstrap=bootstrap)))
    return tuple(found)
