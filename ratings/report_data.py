"""What a study's report rests on, read from the database in four queries, however many readers and images.

Only ratings that stand enter, never those of the training round but for its own result, and those of simulated
experts only where the study is a simulated one. Readers go by the pseudonyms of the exports.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from django.db.models import Q, QuerySet

from generation.models import GeneratedImage
from ratings.agreement.rater_model import NUM_LEVELS
from ratings.agreement.table import RatingTable
from ratings.export import pseudonym
from ratings.models import Assignment, Rating, RatingQuerySet, Study, StudyImage

REAL = "real images"


@dataclass(frozen=True)
class Origin:
    """What is known of an image of the study, and hidden from its readers."""

    group: str  # where it comes from: real, an import, a release, or a model without one
    kind: str  # slug
    is_real: bool
    role: str  # one of StudyImage.Role
    gold: int  # its known grade, 1 to 3; 0: not known


_GONE = Origin("no longer in the study", "", False, "", 0)


@dataclass(frozen=True)
class Ratings:
    """One entry per rating (R,)."""

    images: np.ndarray  # primary keys
    readers: np.ndarray  # pseudonyms
    grades: np.ndarray  # 1 to 3
    occurrences: np.ndarray  # 1 first showing, 2 repeat
    levels: np.ndarray  # 1 to 3, the reader's when rating

    def __len__(self) -> int:
        return len(self.grades)

    @classmethod
    def of(cls, study: Study, ratings: RatingQuerySet) -> "Ratings":
        rows = ratings.order_by("pk").values_list(
            "assignment__image_id", "assignment__reader_id", "value", "assignment__occurrence", "expert_level"
        )
        images, readers, grades, occurrences, levels = np.array(list(rows), dtype=np.int64).reshape(-1, 5).T
        keys, place = np.unique(readers, return_inverse=True)
        names = np.array([pseudonym(str(study.public_id), key) for key in keys.tolist()], dtype=str)
        named = names[place] if len(names) else np.zeros(0, dtype=str)
        return cls(images, named, grades, occurrences, levels)

    def first_showings(self) -> RatingTable:
        first = self.occurrences == 1
        return RatingTable.from_ratings(self.images[first], self.readers[first], self.grades[first])

    def by_level(self, readers: Sequence[str]) -> np.ndarray:
        """(J, 3) how many of each reader's ratings were given at level 1, 2 and 3; ``readers`` in order of name.
        Ratings of others (who graded nothing but second showings) count nowhere."""
        is_theirs = np.isin(self.readers, readers)
        columns = np.searchsorted(np.asarray(readers), self.readers[is_theirs])
        cells = columns * NUM_LEVELS + self.levels[is_theirs] - 1
        return np.bincount(cells, minlength=len(readers) * NUM_LEVELS).reshape(-1, NUM_LEVELS)


@dataclass(frozen=True)
class ReportData:
    """A study's ratings and what is known of its images."""

    ratings: Ratings  # first showings and repeats
    training: Ratings  # of the training round
    origins: dict[int, Origin]  # by image key
    taught: frozenset[tuple[str, int]]  # reader and key of gold images whose grade the reader was told in training

    @classmethod
    def of(cls, study: Study) -> "ReportData":
        training = Assignment.objects.filter(
            kind=Assignment.Kind.TRAINING,
            reader__memberships__study=study,
            image__study_images__study=study,
            rating__state__in=Rating.ANSWERED,
        ).values_list("reader_id", "image_id")
        return cls(
            ratings=Ratings.of(study, counted(study)),
            training=Ratings.of(study, _given(study).filter(assignment__kind=Assignment.Kind.TRAINING)),
            origins=_origins(study),
            taught=frozenset((pseudonym(str(study.public_id), reader), image) for reader, image in training),
        )

    @cached_property
    def table(self) -> RatingTable:
        """First showings."""
        return self.ratings.first_showings()

    def origins_of(self, table: RatingTable) -> list[Origin]:
        """(N,) of the table's images."""
        return [self.origins.get(int(image), _GONE) for image in table.images]

    def truth_of(self, table: RatingTable) -> np.ndarray:
        """(N,) known grades of the table's images, 0 elsewhere."""
        return np.array([origin.gold for origin in self.origins_of(table)], dtype=int)


def _given(study: Study) -> RatingQuerySet:
    return Rating.objects.exportable(study=study, include_simulated=study.is_simulated)


def counted(study: Study) -> RatingQuerySet:
    """The ratings that the report rests on."""
    return _given(study).without_training_round()


def gold_grades(study: Study) -> list[tuple[int, int]]:
    """Image and known grade of whatever the study's readers were or will be measured by, in order."""
    return list(_shown(study).filter(gold__isnull=False).order_by("pk").values_list("pk", "gold__grade"))


def _shown(study: Study) -> QuerySet:
    """The study's images and those of its training round."""
    taught = study.assignments.filter(kind=Assignment.Kind.TRAINING).order_by().values("image")
    return GeneratedImage.objects.filter(Q(pk__in=study.study_images.values("image")) | Q(pk__in=taught))


def _origins(study: Study) -> dict[int, Origin]:
    places = StudyImage.objects.filter(study=study).order_by().values_list("image_id", "role")
    roles = dict(places)
    rows = (
        _shown(study)
        .order_by()
        .values_list(
            *("pk", "source", "is_real", "batch", "release__name", "release__digest", "model_name", "weights_sha256"),
            "prompt__kind",
            "gold__grade",
        )
    )
    return {
        key: Origin(_group_name(*origin), kind, origin[1], roles.get(key, ""), gold or 0)
        for key, *origin, kind, gold in rows.iterator()
    }


def _group_name(
    source: str, is_real: bool, batch: str, release: str | None, digest: str | None, model: str, weights: str
) -> str:
    if is_real:
        return REAL
    if source == GeneratedImage.Source.IMPORTED:
        return f"imported: {batch}" if batch else "imported images"
    if digest:
        return f"release {release} ({digest[:8]})"
    return f"{model or 'unnamed model'} ({weights[:8]})" if weights else model or "unnamed model"
