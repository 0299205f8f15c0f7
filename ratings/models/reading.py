"""Images of studies, stored reading lists, one current rating of each place and its append-only events."""

import uuid
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Avg, Count, Exists, F, Max, Min, OuterRef, Q, Sum

from generation.models import GeneratedImage
from medsyn.modalities import ALL_KINDS
from ratings.answer_codes import CANNOT_JUDGE_REASONS
from ratings.models.people import LEVEL_VALIDATORS
from ratings.models.studies import Grade, Study


class StudyImageQuerySet(models.QuerySet):
    def with_room(self) -> Self:
        """Images of open pools that more readers may have."""
        return self.filter(num_readers__lt=F("max_readers"))

    def not_given_to(self, reader) -> Self:
        """Images for which the reader has no place, places given back apart, and whose grade no training round, of
        whatever study, told the reader."""
        of_reader = Assignment.objects.filter(image=OuterRef("image"), reader=reader)
        held = of_reader.filter(study=OuterRef("study"), released_at=None)
        return self.filter(~Exists(held), ~Exists(of_reader.in_training()))

    def room_by_study(self) -> dict[int, int]:
        """By study key: how many more places the images have room for; studies without an open pool are left out."""
        rows = self.with_room().order_by().values_list("study_id")
        return dict(rows.annotate(room=Sum(F("max_readers") - F("num_readers"))))

    def count_by_study(self) -> dict[int, int]:
        """How many images by study key; studies without any are left out."""
        return dict(self.order_by().values_list("study_id").annotate(number=Count("pk")))


class StudyImage(models.Model):
    """An image of a study. Images added together form a block; later ones never reorder earlier ones."""

    class Role(models.TextChoices):
        MAIN = "main", "Main"
        CALIBRATION = "calibration", "Calibration: never trained on"
        GOLD = "gold", "Gold"
        REAL = "real", "Real image"

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="study_images")
    image = models.ForeignKey(GeneratedImage, on_delete=models.PROTECT, related_name="study_images")
    block = models.PositiveIntegerField(default=0)
    role = models.CharField(max_length=12, choices=Role, default=Role.MAIN)
    max_readers = models.PositiveSmallIntegerField(null=True)  # the overlap target; None: all readers of the study
    num_readers = models.PositiveIntegerField(default=0)  # readers who have a place for it, given-back ones not

    objects = StudyImageQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["study", "image"], name="study_image_once"),
            models.CheckConstraint(
                condition=Q(max_readers__isnull=True) | Q(num_readers__lte=F("max_readers")),
                name="study_image_overlap_kept",
            ),
        ]
        indexes = [
            models.Index(  # in the order in which an open pool is handed out
                "study",
                F("num_readers").desc(),
                "id",
                condition=Q(num_readers__lt=F("max_readers")),
                name="study_image_with_room",
            )
        ]

    def __str__(self) -> str:
        return f"{self.study_id}/{self.image_id}"


class AssignmentQuerySet(models.QuerySet):
    def visible_to(self, user) -> Self:
        """A reader sees the assignments of their own, in open studies; nobody sees another's."""
        return self.filter(reader=user, study__is_open=True)

    def open(self) -> Self:
        """Not yet answered, or taken back; neither void nor given back to the pool."""
        return self.filter(released_at=None).exclude(rating__state__in=(*Rating.ANSWERED, Rating.State.VOID))

    def done(self) -> Self:
        """Rated, or said to be impossible to judge."""
        return self.filter(rating__state__in=Rating.ANSWERED)

    def told_to(self, user) -> Self:
        """Places whose grades leave the person blind: their own, and all of studies that they have nothing left to
        rate in."""
        return self.filter(Q(reader=user) | ~Q(study__in=Study.objects.left_to_rate_by(user)))

    def in_training(self) -> Self:
        """Places of training rounds."""
        return self.filter(kind=Assignment.Kind.TRAINING)

    def progress_by(self, *fields: str) -> models.QuerySet:
        """One row per value of ``fields`` ("study_id", "reader_id"), in one query: total and done assignments,
        mean_active_ms an answer, when the first and the last of the current answers were given; training_total and
        training_done of the training round, which counts in nothing else. Void places and places given back count
        nowhere."""
        in_training = Q(kind=Assignment.Kind.TRAINING)
        counts = Q(released_at=None) & (Q(rating=None) | ~Q(rating__state=Rating.State.VOID))
        rated = Q(rating__state__in=Rating.ANSWERED)
        return (
            self.order_by()
            .values(*fields)
            .annotate(
                total=Count("pk", filter=counts & ~in_training),
                done=Count("pk", filter=rated & ~in_training),
                training_total=Count("pk", filter=counts & in_training),
                training_done=Count("pk", filter=rated & in_training),
                mean_active_ms=Avg("rating__active_ms", filter=rated & ~in_training),
                first_at=Min("rating__submitted_at", filter=rated & ~in_training),
                last_at=Max("rating__submitted_at", filter=rated & ~in_training),
            )
        )


class Assignment(models.Model):
    """One place in a reader's stored reading list."""

    class Kind(models.TextChoices):
        MAIN = "main", "Main"
        REPEAT = "repeat", "Hidden repeat"
        CALIBRATION = "calibration", "Calibration: never trained on"
        GOLD = "gold", "Gold"
        REAL = "real", "Real image"
        TRAINING = "training", "Training round"

    TRAINABLE = (Kind.MAIN, Kind.GOLD)  # what a selector may learn from

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    study = models.ForeignKey(Study, on_delete=models.PROTECT, related_name="assignments")
    reader = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="assignments")
    image = models.ForeignKey(GeneratedImage, on_delete=models.PROTECT, related_name="assignments")
    occurrence = models.PositiveSmallIntegerField(default=1)  # 2 for the second showing of the same image
    position = models.PositiveIntegerField()  # from 0, in the reader's own order
    block = models.PositiveIntegerField(default=0)
    kind = models.CharField(max_length=12, choices=Kind, default=Kind.MAIN)  # never shown to a reader
    released_at = models.DateTimeField(null=True)  # given back to the pool unanswered; None: the reader's

    objects = AssignmentQuerySet.as_manager()

    class Meta:
        ordering = ["position"]
        constraints = [
            models.UniqueConstraint(fields=["study", "reader", "image", "occurrence"], name="assignment_once"),
            models.UniqueConstraint(fields=["study", "reader", "position"], name="assignment_position_once"),
        ]

    def __str__(self) -> str:
        return str(self.public_id)


class RatingQuerySet(models.QuerySet):
    def submitted(self) -> Self:
        """Ratings that count: neither taken back nor void, and with a grade."""
        return self.filter(state=Rating.State.SUBMITTED)

    def answered(self) -> Self:
        """Ratings that count, and the images that their reader could not judge."""
        return self.filter(state__in=Rating.ANSWERED)

    def trainable(self) -> Self:
        """Grades that may train a selector, and fill the five-column CSV: of main and gold images, their first
        showing. Second showings, calibration, real images and the training round are left out."""
        return self.submitted().filter(assignment__kind__in=Assignment.TRAINABLE, assignment__occurrence=1)

    def without_training_round(self) -> Self:
        """What a study's figures rest on: in the training round readers were told the grade afterwards."""
        return self.exclude(assignment__kind=Assignment.Kind.TRAINING)

    def exportable(
        self, *, study=None, modality: str = "", include_simulated: bool = True, include_unjudged: bool = False
    ) -> Self:
        """Ratings that count, of one study or all, of one modality (canonical) or all; with ``include_unjudged``
        also the images that their reader could not judge, which have no grade.

        These are the rows of the tidy table, of every kind and showing, training round included; void ones and those
        taken back are not among them. Chain ``trainable`` for what the five-column CSV may hold,
        ``without_training_round`` for figures.
        """
        ratings = self.answered() if include_unjudged else self.submitted()
        if study is not None:
            ratings = ratings.filter(assignment__study=study)
        if modality:
            slugs = [kind.slug for kind in ALL_KINDS if kind.modality == modality]
            ratings = ratings.filter(assignment__image__prompt__kind__in=slugs)
        return ratings if include_simulated else ratings.filter(is_simulated=False)


class Answer(models.Model):
    """What a reader said of an image, and how the image was shown: the columns of a rating and of its history."""

    value = models.PositiveSmallIntegerField(null=True, choices=Grade)  # None: the reader could not judge
    cannot_judge = models.CharField(max_length=20, blank=True, default="", choices=list(CANNOT_JUDGE_REASONS.items()))
    defects = models.JSONField(default=list, blank=True)  # codes of the protocol's defects, in that order
    comment = models.TextField(blank=True, default="")
    expert_level = models.PositiveSmallIntegerField(validators=LEVEL_VALIDATORS)  # as it was when rating
    protocol_version = models.PositiveIntegerField()
    is_simulated = models.BooleanField(default=False)
    shown_at = models.DateTimeField(null=True)  # after the image was painted, by the reader's clock
    first_input_at = models.DateTimeField(null=True)  # first key or pointer press after that, by the same clock
    answered_at = models.DateTimeField(null=True)  # when the reader answered, by the same clock
    active_ms = models.PositiveIntegerField(null=True)  # milliseconds the page was visible with this image
    display = models.JSONField(default=dict, blank=True)  # viewport, pixel ratio, ...: serializers.DisplaySerializer
    submitted_at = models.DateTimeField()  # when the server stored it: later where the connection was lost

    class Meta:
        abstract = True


class Rating(Answer):
    """The current rating of an assignment. Never deleted; what happened to it stands in its events."""

    class State(models.TextChoices):
        SUBMITTED = "submitted", "Submitted"
        CANNOT_JUDGE = "cannot_judge", "Cannot be judged by the reader"
        WITHDRAWN = "withdrawn", "Taken back by the reader"
        VOID = "void", "Void: does not count"

    ANSWERED = (State.SUBMITTED, State.CANNOT_JUDGE)

    assignment = models.OneToOneField(Assignment, on_delete=models.PROTECT, related_name="rating")
    state = models.CharField(max_length=12, choices=State, default=State.SUBMITTED)
    revision = models.PositiveIntegerField(default=1)  # raised by every event

    objects = RatingQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(value__gte=1, value__lte=3), name="rating_value_range"),
            models.CheckConstraint(
                condition=~Q(state="submitted") | Q(value__isnull=False), name="rating_submitted_has_value"
            ),
            models.CheckConstraint(
                condition=~Q(state="cannot_judge") | (Q(value__isnull=True) & ~Q(cannot_judge="")),
                name="rating_cannot_judge_has_reason",
            ),
            models.CheckConstraint(condition=Q(expert_level__gte=1, expert_level__lte=3), name="rating_level_range"),
        ]

    def __str__(self) -> str:
        return f"{self.get_value_display() or 'No grade'} ({self.state})"


class RatingEvent(Answer):
    """What happened to a rating, in order, with the whole answer as it stood afterwards. Rows are only ever added, so
    that any earlier state of all ratings can be exported again."""

    class Action(models.TextChoices):
        SUBMIT = "submit", "Submitted"
        CHANGE = "change", "Changed"
        REMARK = "remark", "Defects or comment changed"
        UNDO = "undo", "Taken back"
        VOID = "void", "Declared void"
        RESTORE = "restore", "Counts again"

    rating = models.ForeignKey(Rating, on_delete=models.PROTECT, related_name="events")
    revision = models.PositiveIntegerField()
    action = models.CharField(max_length=10, choices=Action)
    state = models.CharField(max_length=12, choices=Rating.State)  # of the rating afterwards
    old_value = models.PositiveSmallIntegerField(null=True, choices=Grade)  # the grade that stood before
    reason = models.TextField(blank=True, default="")  # why it was declared void, or counts again
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    client_uuid = models.UUIDField()  # made by the client once per submission: a replay finds its event
    client_time = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["revision"]
        constraints = [
            models.UniqueConstraint(fields=["rating", "revision"], name="rating_event_revision_once"),
            models.UniqueConstraint(fields=["rating", "client_uuid"], name="rating_event_client_once"),
            models.CheckConstraint(
                condition=~Q(action__in=("void", "restore")) | ~Q(reason=""), name="rating_event_void_has_reason"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.old_value} -> {self.new_value}"

    @property
    def new_value(self) -> int | None:
        """The grade that stood afterwards; None: none does."""
        return self.value if self.state == Rating.State.SUBMITTED else None
