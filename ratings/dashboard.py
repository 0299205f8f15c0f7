"""The figures of a study's page, in a fixed number of queries."""

from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from itertools import accumulate, pairwise

from django.db.models import Count, F, Min, Q, Sum
from django.db.models.functions import Greatest, Least
from django.utils import timezone

from ratings.export import pseudonym
from ratings.models import Grade, Rating, RatingQuerySet, Study

_ACTIVE_WITHIN = timedelta(hours=24)
_PACE_WINDOW = timedelta(days=7)
_MIN_FOR_PACE = 5  # answers; fewer say nothing about when the study will end
_MIN_SPAN = timedelta(days=1)  # of the answers: who reads one afternoon does not go on through the night
_SHOWN_DAYS = 14


def stacked(histogram: tuple[int, ...]) -> list[tuple[str, str]]:
    """Start and width of each part of a stacked bar 100 wide, as SVG wants them in every language."""
    ends = [100 * end / (sum(histogram) or 1) for end in accumulate(histogram, initial=0)]
    return [(f"{start:.2f}", f"{end - start:.2f}") for start, end in pairwise(ends)]


@dataclass(frozen=True)
class ReaderRow:
    """One reader of the study."""

    reader: str  # user name
    expert_level: int  # 1 to 3
    is_simulated: bool
    done: int  # ratings that stand
    total: int  # places in the reading list; in an open pool those given so far
    training_done: int  # answers of the training round, which counts in nothing else
    training_total: int
    grades: tuple[int, ...]  # ratings by grade, poor first
    seconds_per_image: float | None  # mean active time
    last_at: datetime | None
    pseudonym: str  # as in the exports
    seconds_left: float | None  # reading time of the rest, at the own pace or, before there is one, at the study's
    per_day: tuple[int, ...]  # answers on each of StudyFigures.days

    @property
    def share(self) -> float:
        """Done, 0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def images_per_hour(self) -> float | None:
        """Of reading time."""
        return 3600 / self.seconds_per_image if self.seconds_per_image else None

    @property
    def left_in_words(self) -> str:
        """Reading time of what is left, rounded; empty where it is not known."""
        if self.seconds_left is None:
            return ""
        minutes = max(1, round(self.seconds_left / 60))
        return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

    @property
    def stacked_grades(self) -> list[tuple[str, str]]:
        return stacked(self.grades)

    @property
    def spark(self) -> str:
        """Points of a line over the days, in a box 100 wide and 20 high."""
        top, steps = max(self.per_day) or 1, len(self.per_day) - 1
        return " ".join(
            f"{100 * day / steps:.1f},{19 - 18 * number / top:.1f}" for day, number in enumerate(self.per_day)
        )


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
    done: int  # answers that stand, training round apart
    total: int  # that the study wants: places in the reading lists, and those its pool still has to give
    pool_room: int  # places that the open pool still has to give, hidden repeats of them included; 0: there is none
    num_active: int  # readers who rated within the last 24 hours
    images_per_hour: float | None  # of reading time, all readers together
    finish_at: datetime | None  # at the pace of the last seven days
    num_simulated: int  # ratings of simulated experts among done
    days: tuple[date, ...]  # the last fourteen, today last

    @property
    def percent(self) -> float:
        return 100 * self.done / self.total if self.total else 0.0

    @property
    def all_given(self) -> bool:
        """Whether nothing is left to rate."""
        return self.total > 0 and self.done >= self.total


def _shown(study: Study) -> RatingQuerySet:
    """Answers that stand, the training round apart."""
    return Rating.objects.answered().filter(assignment__study=study).without_training_round()


def _grades(study: Study) -> dict[int, Counter]:
    """Ratings that stand, by reader and grade."""
    rows = (
        _shown(study)
        .submitted()
        .values_list("assignment__reader_id", "value")
        .annotate(number=Count("pk"))
        .order_by()
    )
    grades: dict[int, Counter] = {}
    for reader_id, value, number in rows:
        grades.setdefault(reader_id, Counter())[value] = number
    return grades


def _answers_by_day(study: Study, days: tuple[date, ...]) -> dict[int, tuple[int, ...]]:
    """Answers that stand on each of the days, by reader."""
    starts = [timezone.make_aware(datetime.combine(day, time.min)) for day in (*days, days[-1] + timedelta(days=1))]
    # Counted between fixed ends: to truncate each time to its day takes SQLite six times as long.
    counts = {
        f"day{number}": Count("pk", filter=Q(submitted_at__gte=start, submitted_at__lt=end))
        for number, (start, end) in enumerate(pairwise(starts))
    }
    rows = _shown(study).filter(submitted_at__gte=starts[0])
    rows = rows.values_list("assignment__reader_id").annotate(**counts).order_by()
    return {reader_id: tuple(numbers) for reader_id, *numbers in rows}


def _seconds_left(row: dict, pace_ms: float | None) -> float | None:
    """Reading time of what is left; None where nobody's pace is known."""
    active_ms = row["mean_active_ms"] or pace_ms
    return None if active_ms is None else (row["total"] - row["done"]) * active_ms / 1000


def _pace_ms(progress: list[dict]) -> float | None:
    """Mean active time an answer, over all readers."""
    timed = [(row["done"], row["mean_active_ms"]) for row in progress if row["done"] and row["mean_active_ms"]]
    return sum(done * each for done, each in timed) / sum(done for done, _ in timed) if timed else None


def _reader_rows(
    study: Study, progress: list[dict], pace_ms: float | None, days: tuple[date, ...], grades: dict[int, Counter]
) -> tuple[ReaderRow, ...]:
    by_day = _answers_by_day(study, days)
    rows = []
    for row in progress:
        own = grades.get(row["reader_id"], Counter())
        active_ms = row["mean_active_ms"]
        rows.append(
            ReaderRow(
                reader=row["reader"],
                expert_level=row["expert_level"],
                is_simulated=row["is_simulated"],
                done=row["done"],
                total=row["total"],
                training_done=row["training_done"],
                training_total=row["training_total"],
                grades=tuple(own[grade] for grade in Grade),
                seconds_per_image=None if active_ms is None else active_ms / 1000,
                last_at=row["last_at"],
                pseudonym=pseudonym(str(study.public_id), row["reader_id"]),
                seconds_left=_seconds_left(row, pace_ms),
                per_day=by_day.get(row["reader_id"], (0,) * len(days)),
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
    """When the rest is done at the pace of the last seven days, nights included; None where nobody can say."""
    recent = (
        _shown(study)
        .filter(submitted_at__gte=now - _PACE_WINDOW)
        .aggregate(number=Count("pk"), since=Min("submitted_at"))
    )
    if not remaining or not study.is_open or recent["number"] < _MIN_FOR_PACE or now - recent["since"] < _MIN_SPAN:
        return None
    return now + (now - recent["since"]) * (remaining / recent["number"])


def _pool_room(study: Study, num_readers: int) -> int:
    """Places that the open pool still has to give to the readers there are, and the repeats that come with them."""
    images = study.study_images.filter(max_readers__isnull=False)
    wanted = Least(F("max_readers"), num_readers)
    room = images.aggregate(room=Sum(Greatest(wanted - F("num_readers"), 0)))["room"] or 0
    return room + round(study.protocol.repeat_share * room)


def figures_of(study: Study) -> StudyFigures:
    """All figures; nine queries, however many readers, images and ratings there are."""
    now = timezone.now()
    today = timezone.localdate(now)
    days = tuple(today - timedelta(days=back) for back in reversed(range(_SHOWN_DAYS)))
    grades = _grades(study)
    progress = study.reader_progress()
    pace_ms = _pace_ms(progress)
    readers = _reader_rows(study, progress, pace_ms, days, grades)
    room = _pool_room(study, len(readers))
    done, total = sum(row.done for row in readers), sum(row.total for row in readers) + room
    return StudyFigures(
        readers=readers,
        bars=_bars(grades),
        num_images=study.study_images.count(),
        done=done,
        total=total,
        pool_room=room,
        num_active=sum(row.last_at is not None and row.last_at > now - _ACTIVE_WITHIN for row in readers),
        images_per_hour=3_600_000 / pace_ms if pace_ms else None,
        finish_at=_finish_at(study, total - done, now),
        num_simulated=_shown(study).submitted().filter(is_simulated=True).count(),
        days=days,
    )
