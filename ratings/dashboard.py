"""The figures of a study's page, in a fixed number of queries."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Count, Min
from django.utils import timezone

from ratings.models import Grade, Rating, Study

_ACTIVE_WITHIN = timedelta(hours=24)
_PACE_WINDOW = timedelta(days=7)
_MIN_FOR_PACE = 5  # ratings; fewer say nothing about when the study will end


@dataclass(frozen=True)
class ReaderRow:
    """One reader of the study."""

    reader: str  # user name
    expert_level: int  # 1 to 3
    is_simulated: bool
    done: int  # ratings that stand
    total: int  # places in the reading list
    grades: tuple[int, ...]  # ratings by grade, poor first
    seconds_per_image: float | None  # mean active time
    last_at: datetime | None

    @property
    def share(self) -> float:
        """Done, 0 to 1."""
        return self.done / self.total if self.total else 0.0


@dataclass(frozen=True)
class GradeBar:
    """A bar of the grade histogram."""

    value: int
    label: str
    count: int
    percent: float  # of all ratings, 0 to 100


@dataclass(frozen=True)
class StudyFigures:
    """What a study's page shows."""

    readers: tuple[ReaderRow, ...]
    bars: tuple[GradeBar, ...]
    num_images: int
    done: int
    total: int
    num_active: int  # readers who rated within the last 24 hours
    images_per_hour: float | None  # of reading time, all readers together
    finish_at: datetime | None  # at the pace of the last seven days
    num_simulated: int  # ratings of simulated experts among done

    @property
    def percent(self) -> float:
        return 100 * self.done / self.total if self.total else 0.0


def _grades(study: Study) -> dict[int, Counter]:
    """Ratings that stand, by reader and grade."""
    rows = (
        Rating.objects.exportable(study=study)
        .values_list("assignment__reader_id", "value")
        .annotate(number=Count("pk"))
        .order_by()
    )
    grades: dict[int, Counter] = {}
    for reader_id, value, number in rows:
        grades.setdefault(reader_id, Counter())[value] = number
    return grades


def _reader_rows(study: Study, grades: dict[int, Counter]) -> tuple[ReaderRow, ...]:
    rows = []
    for row in study.reader_progress():
        own = grades.get(row["reader_id"], Counter())
        active_ms = row["mean_active_ms"]
        rows.append(
            ReaderRow(
                reader=row["reader"],
                expert_level=row["expert_level"],
                is_simulated=row["is_simulated"],
                done=row["done"],
                total=row["total"],
                grades=tuple(own[grade] for grade in Grade),
                seconds_per_image=None if active_ms is None else active_ms / 1000,
                last_at=row["last_at"],
            )
        )
    return tuple(rows)


def _bars(grades: dict[int, Counter]) -> tuple[GradeBar, ...]:
    total = sum(grades.values(), Counter())
    number = sum(total.values())
    return tuple(
        GradeBar(grade.value, grade.label, total[grade], 100 * total[grade] / number if number else 0.0)
        for grade in Grade
    )


def _finish_at(study: Study, remaining: int, now: datetime) -> datetime | None:
    """When the rest is done at the pace of the last seven days; None where that is not to be said."""
    recent = (
        Rating.objects.exportable(study=study)
        .filter(submitted_at__gte=now - _PACE_WINDOW)
        .aggregate(number=Count("pk"), since=Min("submitted_at"))
    )
    if not remaining or recent["number"] < _MIN_FOR_PACE:
        return None
    return now + (now - recent["since"]) * (remaining / recent["number"])


def _images_per_hour(readers: tuple[ReaderRow, ...]) -> float | None:
    timed = [(row.done, row.seconds_per_image) for row in readers if row.done and row.seconds_per_image]
    seconds = sum(done * each for done, each in timed)
    return 3600 * sum(done for done, _ in timed) / seconds if seconds else None


def figures_of(study: Study) -> StudyFigures:
    """All figures; six queries, however many readers and ratings there are."""
    now = timezone.now()
    grades = _grades(study)
    readers = _reader_rows(study, grades)
    done, total = sum(row.done for row in readers), sum(row.total for row in readers)
    return StudyFigures(
        readers=readers,
        bars=_bars(grades),
        num_images=study.study_images.count(),
        done=done,
        total=total,
        num_active=sum(row.last_at is not None and row.last_at > now - _ACTIVE_WITHIN for row in readers),
        images_per_hour=_images_per_hour(readers),
        finish_at=_finish_at(study, total - done, now),
        num_simulated=Rating.objects.exportable(study=study).filter(is_simulated=True).count(),
    )
