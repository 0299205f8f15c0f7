"""Image -> rating -> CSV: studies, stored reading lists, one current rating and its append-only events."""

import uuid
from pathlib import Path
from typing import Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Avg, Count, Max, Min, Q
from django.urls import reverse

from generation.models import GeneratedImage
from medsyn.modalities import ALL_KINDS
from ratings.answer_codes import CANNOT_JUDGE_REASONS

LEVEL_VALIDATORS = [MinValueValidator(1), MaxValueValidator(3)]


class Grade(models.IntegerChoices):
    POOR = 1, "Poor"
    ACCEPTABLE = 2, "Acceptable"
    EXCELLENT = 3, "Excellent"


class StudyQuerySet(models.QuerySet):
    def read_by(self, user) -> Self:
        """Studies in which the person reads."""
        return self.filter(memberships__reader=user)


class Study(models.Model):
    """A set of images that its readers rate blind."""

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    name = models.CharField(max_length=200, unique=True)
    description = models.TextField(blank=True)
    order_seed = models.PositiveBigIntegerField()  # each reader's order follows from it and the reader's key
    protocol_version = models.PositiveIntegerField(default=1)
    is_open = models.BooleanField(default=True)
    is_simulated = models.BooleanField(default=False)  # rated by simulated experts: demonstration only
    images = models.ManyToManyField(GeneratedImage, through="StudyImage", related_name="studies")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = StudyQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        verbose_name_plural = "studies"

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("ratings:study", args=[self.public_id])

    @property
    def shows_phantoms(self) -> bool:
        """Whether any of its images is a procedural phantom: said for the study as a whole, so that it gives no
        single image away."""
        return self.images.filter(is_phantom=True).exists()

    def reader_progress(self) -> list[dict]:
        """One entry per reader in the order of joining, the reader's level and progress; two queries."""
        rows = {row["reader_id"]: row for row in self.assignments.progress_by("reader_id")}
        nothing = {"total": 0, "done": 0, "mean_active_ms": None, "first_at": None, "last_at": None}
        return [
            {
                **(rows.get(member.reader_id) or nothing),
                "reader_id": member.reader_id,
                "reader": member.reader.get_username(),
                "expert_level": member.expert_level,
                "is_simulated": member.is_simulated,
            }
            for member in self.memberships.select_related("reader").order_by("pk")
        ]


class StudyImage(models.Model):
    """An image of a study. Images added together form a block; later ones never reorder earlier ones."""

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="study_images")
    image = models.ForeignKey(GeneratedImage, on_delete=models.PROTECT, related_name="study_images")
    block = models.PositiveIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["study", "image"], name="study_image_once")]

    def __str__(self) -> str:
        return f"{self.study_id}/{self.image_id}"


class Membership(models.Model):
    """A reader in a study, with the expertise level under which the ratings are given."""

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="memberships")
    reader = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="memberships")
    expert_level = models.PositiveSmallIntegerField(validators=LEVEL_VALIDATORS)  # 1 trainee to 3 senior expert
    is_simulated = models.BooleanField(default=False)
    joined_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["study", "reader"], name="reader_once_per_study"),
            models.CheckConstraint(
                condition=Q(expert_level__gte=1, expert_level__lte=3), name="membership_level_range"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.reader_id} in {self.study_id}"


class AssignmentQuerySet(models.QuerySet):
    def visible_to(self, user) -> Self:
        """A reader sees the assignments of their own, in open studies; nobody sees another's."""
        return self.filter(reader=user, study__is_open=True)

    def open(self) -> Self:
        """Not yet answered, or taken back."""
        return self.exclude(rating__state__in=Rating.ANSWERED)

    def done(self) -> Self:
        """Rated, or said to be impossible to judge."""
        return self.filter(rating__state__in=Rating.ANSWERED)

    def progress_by(self, *fields: str) -> models.QuerySet:
        """One row per value of ``fields`` ("study_id", "reader_id"), in one query: total and done assignments,
        mean_active_ms an answer, when the first and the last of the current answers were given."""
        rated = Q(rating__state__in=Rating.ANSWERED)
        return (
            self.order_by()
            .values(*fields)
            .annotate(
                total=Count("pk"),
                done=Count("pk", filter=rated),
                mean_active_ms=Avg("rating__active_ms", filter=rated),
                first_at=Min("rating__submitted_at", filter=rated),
                last_at=Max("rating__submitted_at", filter=rated),
            )
        )


class Assignment(models.Model):
    """One place in a reader's stored reading list."""

    class Kind(models.TextChoices):
        MAIN = "main", "Main"
        REPEAT = "repeat", "Hidden repeat"
        GOLD = "gold", "Gold"
        REAL = "real", "Real image"
        TRAINING = "training", "Training round"

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    study = models.ForeignKey(Study, on_delete=models.PROTECT, related_name="assignments")
    reader = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="assignments")
    image = models.ForeignKey(GeneratedImage, on_delete=models.PROTECT, related_name="assignments")
    occurrence = models.PositiveSmallIntegerField(default=1)  # 2 for the second showing of the same image
    position = models.PositiveIntegerField()  # from 0, in the reader's own order
    block = models.PositiveIntegerField(default=0)
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.MAIN)  # never shown to a reader

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

    def exportable(
        self, *, study=None, modality: str = "", include_simulated: bool = True, include_unjudged: bool = False
    ) -> Self:
        """Ratings that count, of one study or all, of one modality (canonical) or all; with ``include_unjudged``
        also the images that their reader could not judge, which have no grade."""
        ratings = self.answered() if include_unjudged else self.submitted()
        if study is not None:
            ratings = ratings.filter(assignment__study=study)
        if modality:
            slugs = [kind.slug for kind in ALL_KINDS if kind.modality == modality]
            ratings = ratings.filter(assignment__image__prompt__kind__in=slugs)
        return ratings if include_simulated else ratings.filter(is_simulated=False)


class Rating(models.Model):
    """The current rating of an assignment. Never deleted; what happened to it stands in its events."""

    class State(models.TextChoices):
        SUBMITTED = "submitted", "Submitted"
        CANNOT_JUDGE = "cannot_judge", "Cannot be judged by the reader"
        WITHDRAWN = "withdrawn", "Taken back by the reader"

    ANSWERED = (State.SUBMITTED, State.CANNOT_JUDGE)

    assignment = models.OneToOneField(Assignment, on_delete=models.PROTECT, related_name="rating")
    state = models.CharField(max_length=12, choices=State, default=State.SUBMITTED)
    value = models.PositiveSmallIntegerField(null=True, choices=Grade)  # None: the reader could not judge
    cannot_judge = models.CharField(max_length=20, blank=True, default="", choices=list(CANNOT_JUDGE_REASONS.items()))
    defects = models.JSONField(default=list, blank=True)  # codes of ratings.answer_codes.DEFECTS, in that order
    comment = models.TextField(blank=True, default="")
    expert_level = models.PositiveSmallIntegerField(validators=LEVEL_VALIDATORS)  # as it was when rating
    protocol_version = models.PositiveIntegerField()
    is_simulated = models.BooleanField(default=False)
    revision = models.PositiveIntegerField(default=1)  # raised by every event
    shown_at = models.DateTimeField(null=True)  # after the image was painted, by the reader's clock
    first_input_at = models.DateTimeField(null=True)  # first key or pointer press after that, by the same clock
    answered_at = models.DateTimeField(null=True)  # when the reader answered, by the same clock
    active_ms = models.PositiveIntegerField(null=True)  # milliseconds the page was visible with this image
    display = models.JSONField(default=dict, blank=True)  # viewport, pixel ratio, ...: serializers.DisplaySerializer
    submitted_at = models.DateTimeField()  # when the server stored it: later where the connection was lost

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


class RatingEvent(models.Model):
    """What happened to a rating, in order. Rows are only ever added."""

    class Action(models.TextChoices):
        SUBMIT = "submit", "Submitted"
        CHANGE = "change", "Changed"
        REMARK = "remark", "Defects or comment changed"
        UNDO = "undo", "Taken back"

    rating = models.ForeignKey(Rating, on_delete=models.PROTECT, related_name="events")
    revision = models.PositiveIntegerField()
    action = models.CharField(max_length=10, choices=Action)
    old_value = models.PositiveSmallIntegerField(null=True, choices=Grade)
    new_value = models.PositiveSmallIntegerField(null=True, choices=Grade)
    answer = models.JSONField(default=dict)  # defects, comment, cannot_judge after the event; empty ones left out
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    client_uuid = models.UUIDField()  # made by the client once per submission: a replay finds its event
    client_time = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["revision"]
        constraints = [
            models.UniqueConstraint(fields=["rating", "revision"], name="rating_event_revision_once"),
            models.UniqueConstraint(fields=["rating", "client_uuid"], name="rating_event_client_once"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.old_value} -> {self.new_value}"


class Export(models.Model):
    """A ratings CSV that was written: what it held and what its bytes hash to."""

    study = models.ForeignKey(Study, null=True, blank=True, on_delete=models.PROTECT, related_name="exports")
    file = models.CharField(max_length=500)  # below the artifact root, or an absolute path that was asked for
    sha256 = models.CharField(max_length=64)
    row_count = models.PositiveIntegerField()
    filters = models.JSONField(default=dict)
    has_simulated = models.BooleanField(default=False)  # some of its ratings came from simulated experts
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Export {self.pk}: {self.row_count} ratings"

    @property
    def path(self) -> Path:
        return settings.ARTIFACT_ROOT / self.file
