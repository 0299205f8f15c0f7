"""Image -> rating -> CSV: studies, stored reading lists, one current rating and its append-only events."""

import uuid
from pathlib import Path
from typing import Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Avg, Count, Exists, F, Max, Min, OuterRef, Q, Sum
from django.urls import reverse
from django.utils.functional import cached_property

from generation.models import GeneratedImage
from medsyn.modalities import ALL_KINDS
from medsyn.roles import is_admin, is_study_owner
from ratings.answer_codes import CANNOT_JUDGE_REASONS, DEFECTS

LEVEL_VALIDATORS = [MinValueValidator(1), MaxValueValidator(3)]


class Grade(models.IntegerChoices):
    POOR = 1, "Poor"
    ACCEPTABLE = 2, "Acceptable"
    EXCELLENT = 3, "Excellent"


# What AssignmentQuerySet.progress_by says of a list without places.
NO_PROGRESS = {
    "total": 0,
    "done": 0,
    "training_total": 0,
    "training_done": 0,
    "mean_active_ms": None,
    "first_at": None,
    "last_at": None,
}


class StudyQuerySet(models.QuerySet):
    def read_by(self, user) -> Self:
        """Studies in which the person reads."""
        return self.filter(memberships__reader=user)

    def managed_by(self, user) -> Self:
        """Studies that the person runs: all for administrators, their own for study owners, none for others."""
        if is_admin(user):
            return self.all()
        return self.filter(created_by=user) if is_study_owner(user) else self.none()

    def visible_to(self, user) -> Self:
        """Studies that the person runs or reads."""
        if is_admin(user):
            return self.all()
        theirs = Q(memberships__reader=user)
        if is_study_owner(user):
            theirs |= Q(created_by=user)
        return self.filter(pk__in=Study.objects.filter(theirs).values("pk"))

    def with_pool(self) -> Self:
        """Each with ``has_pool``: whether its readers are given images from an open pool."""
        current = Protocol.objects.filter(study=OuterRef("pk"), version=OuterRef("protocol_version"))
        return self.annotate(has_pool=Exists(current.filter(overlap_target__isnull=False)))

    def with_phantoms(self) -> Self:
        """For lists: ``shows_phantoms`` takes no query of its own then."""
        phantoms = StudyImage.objects.filter(study=OuterRef("pk"), image__is_phantom=True)
        return self.annotate(has_phantoms=Exists(phantoms))


class Study(models.Model):
    """A set of images that its readers rate blind."""

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    name = models.CharField(max_length=200, unique=True)
    description = models.TextField(blank=True)
    order_seed = models.PositiveBigIntegerField()  # each reader's order follows from it and the reader's key
    protocol_version = models.PositiveIntegerField(default=1)  # of the Protocol that holds now
    frozen_at = models.DateTimeField(null=True, editable=False)  # first rating under that version; None: may change
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

    @cached_property
    def protocol(self) -> "Protocol":
        """How its readers rate now."""
        return self.protocols.get(version=self.protocol_version)

    @property
    def has_begun(self) -> bool:
        """Whether it was ever rated: its name stands in exports then, and does not change any more."""
        return self.frozen_at is not None or self.protocol_version > 1

    @property
    def shows_phantoms(self) -> bool:
        """Whether any of its images is a procedural phantom: said for the study as a whole, so that it gives no
        single image away."""
        known = self.__dict__.get("has_phantoms")  # of StudyQuerySet.with_phantoms
        return self.images.filter(is_phantom=True).exists() if known is None else known

    def reader_progress(self) -> list[dict]:
        """One entry per reader in the order of joining, the reader's level and progress; two queries.

        ``total`` is what the reader has been given: in an open pool more may follow.
        """
        rows = {row["reader_id"]: row for row in self.assignments.progress_by("reader_id")}
        return [
            {
                **(rows.get(member.reader_id) or NO_PROGRESS),
                "reader_id": member.reader_id,
                "reader": member.reader.get_username(),
                "expert_level": member.expert_level,
                "is_simulated": member.is_simulated,
            }
            for member in self.memberships.select_related("reader").order_by("pk")
        ]


def _standard_scale() -> dict[str, str]:
    return {str(grade.value): "" for grade in Grade}


def _standard_defects() -> list[list[str]]:
    return [[code, label] for code, label in DEFECTS.items()]


class Protocol(models.Model):
    """How a study is read. Rows change only until the first rating under them; then a new version is made."""

    study = models.ForeignKey(Study, on_delete=models.PROTECT, related_name="protocols")
    version = models.PositiveIntegerField(default=1)
    scale_texts = models.JSONField(default=_standard_scale)  # by grade "1" to "3": what the grade means here
    defects = models.JSONField(default=_standard_defects)  # [code, label] in the order of the keys
    overlap_target = models.PositiveSmallIntegerField(null=True, blank=True)  # readers per image; None: all
    repeat_share = models.FloatField(default=0)  # hidden second showings, as a share of a reader's first showings
    repeat_distance = models.PositiveSmallIntegerField(default=30)  # least positions between the two showings
    gold_share = models.FloatField(default=0)  # of a block's images: with a known grade
    real_share = models.FloatField(default=0)  # of a block's images: real ones among synthetic ones
    calibration_share = models.FloatField(default=0)  # of a block's other images: never trained on
    num_training_images = models.PositiveSmallIntegerField(
        default=0
    )  # gold images with feedback, before a first study
    reason = models.TextField(blank=True)  # why this version was made; empty for the first
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["version"]
        constraints = [
            models.UniqueConstraint(fields=["study", "version"], name="protocol_version_once"),
            models.CheckConstraint(
                condition=Q(overlap_target__isnull=True) | Q(overlap_target__gte=1), name="protocol_overlap_range"
            ),
            models.CheckConstraint(
                condition=Q(repeat_share__gte=0, repeat_share__lte=0.5), name="protocol_repeat_range"
            ),
            models.CheckConstraint(
                condition=Q(gold_share__gte=0, real_share__gte=0, gold_share__lte=0.5, real_share__lte=0.5),
                name="protocol_mixed_in_range",
            ),
            models.CheckConstraint(
                condition=Q(calibration_share__gte=0, calibration_share__lte=1), name="protocol_calibration_range"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.study_id}, version {self.version}"


class Anchor(models.Model):
    """The example of a grade that readers of a protocol can look at."""

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    protocol = models.ForeignKey(Protocol, on_delete=models.CASCADE, related_name="anchors")
    grade = models.PositiveSmallIntegerField(choices=Grade)
    image = models.ForeignKey(GeneratedImage, on_delete=models.PROTECT, related_name="+")

    class Meta:
        ordering = ["grade"]
        constraints = [
            models.UniqueConstraint(fields=["protocol", "grade"], name="anchor_once_per_grade"),
            models.CheckConstraint(condition=Q(grade__gte=1, grade__lte=3), name="anchor_grade_range"),
        ]

    def __str__(self) -> str:
        return f"{self.protocol_id}: {self.get_grade_display()}"


class GoldGrade(models.Model):
    """The grade that an image is known to have: by a panel's consensus, or because its defect was planted."""

    image = models.OneToOneField(GeneratedImage, on_delete=models.PROTECT, related_name="gold")
    grade = models.PositiveSmallIntegerField(choices=Grade)
    rationale = models.TextField(blank=True)  # shown in the training round
    set_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(grade__gte=1, grade__lte=3), name="gold_grade_range")]

    def __str__(self) -> str:
        return f"{self.image_id}: {self.get_grade_display()}"


class StudyImageQuerySet(models.QuerySet):
    def with_room(self) -> Self:
        """Images of open pools that more readers may have."""
        return self.filter(num_readers__lt=F("max_readers"))

    def not_given_to(self, reader) -> Self:
        """Images for which the reader has no place, places given back apart."""
        held = Assignment.objects.filter(study=OuterRef("study"), image=OuterRef("image"), reader=reader)
        return self.filter(~Exists(held.filter(released_at=None)))

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

    def __str__(self) -> str:
        return f"{self.study_id}/{self.image_id}"


class ExpertiseQuerySet(models.QuerySet):
    def of(self, person) -> Self:
        """A person's levels, the current one first."""
        return self.filter(person=person).order_by("-pk")


class Expertise(models.Model):
    """A level that somebody verified for a person. Rows are only ever added; the newest holds."""

    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="expertise")
    expert_level = models.PositiveSmallIntegerField(validators=LEVEL_VALIDATORS)  # 1 trainee to 3 senior expert
    specialty = models.CharField(max_length=200, blank=True)
    note = models.TextField(blank=True)  # what the level rests on
    verified_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")
    verified_at = models.DateTimeField(auto_now_add=True)

    objects = ExpertiseQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        verbose_name_plural = "expertise"
        constraints = [
            models.CheckConstraint(
                condition=Q(expert_level__gte=1, expert_level__lte=3), name="expertise_level_range"
            )
        ]

    def __str__(self) -> str:
        return f"{self.person_id}: level {self.expert_level}"


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
        """Not yet answered, or taken back; neither void nor given back to the pool."""
        return self.filter(released_at=None).exclude(rating__state__in=(*Rating.ANSWERED, Rating.State.VOID))

    def done(self) -> Self:
        """Rated, or said to be impossible to judge."""
        return self.filter(rating__state__in=Rating.ANSWERED)

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


class ExportQuerySet(models.QuerySet):
    def managed_by(self, user) -> Self:
        """Exports that the person may see: all for administrators, those of their studies for study owners."""
        return self.all() if is_admin(user) else self.filter(study__in=Study.objects.managed_by(user))


class Export(models.Model):
    """Files written of the ratings as they stood after one event: what they held, what their bytes hash to."""

    class Content(models.TextChoices):
        RATINGS = "ratings", "Ratings: five columns, tidy table, data dictionary"
        IMAGES = "images", "Images: what all readers together say of each"

    content = models.CharField(max_length=10, choices=Content, default=Content.RATINGS)
    study = models.ForeignKey(Study, null=True, blank=True, on_delete=models.PROTECT, related_name="exports")
    file = models.CharField(max_length=500)  # below the artifact root, or an absolute path that was asked for
    sha256 = models.CharField(max_length=64)  # of that file
    files = models.JSONField(default=dict)  # by name: {"file", "sha256", "row_count"} of all that were written
    row_count = models.PositiveIntegerField()
    filters = models.JSONField(default=dict)
    last_event = models.PositiveBigIntegerField(null=True)  # key of the newest RatingEvent that it knew of
    code_version = models.CharField(max_length=100, blank=True)
    rerun_of = models.ForeignKey("self", null=True, on_delete=models.PROTECT, related_name="reruns")
    has_simulated = models.BooleanField(default=False)  # some of its ratings came from simulated experts
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ExportQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Export {self.pk}: {self.row_count} {'ratings' if self.content == self.Content.RATINGS else 'images'}"

    @property
    def path(self) -> Path:
        """The first of its files."""
        return settings.ARTIFACT_ROOT / self.file

    def path_of(self, name: str) -> Path:
        """One of its files by name; raises FileNotFoundError for a name that it does not have."""
        if name not in self.files:
            raise FileNotFoundError(
                f"Export {self.pk} has no file {name!r}; it has {', '.join(self.files) or 'none'}."
            )
        return settings.ARTIFACT_ROOT / self.files[name]["file"]

    @property
    def differing_files(self) -> tuple[str, ...]:
        """Names of the files whose bytes are not those of the export that this one repeats."""
        if self.rerun_of is None:
            return ()
        before = self.rerun_of.files
        return tuple(name for name, file in self.files.items() if file["sha256"] != before[name]["sha256"])
