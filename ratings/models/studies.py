"""Studies, how they are read, and images whose grade is known."""

import uuid
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.urls import reverse
from django.utils.functional import cached_property

from generation.models import GeneratedImage
from medsyn.roles import is_admin, is_study_owner
from ratings.answer_codes import DEFECTS


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

    def left_to_rate_by(self, user) -> Self:
        """Open studies in which the person has places to answer, or reads an open pool that has images left for them:
        who knows the others' grades is blind no more."""
        places = Study.assignments.field.model.objects.filter(study=OuterRef("pk"), reader=user)
        member = Study.memberships.field.model.objects.filter(study=OuterRef("pk"), reader=user)
        pool = Study.study_images.field.model.objects.filter(study=OuterRef("pk")).with_room().not_given_to(user)
        return self.filter(Exists(places.open()) | Exists(member) & Exists(pool), is_open=True)

    def with_pool(self) -> Self:
        """Each with ``has_pool``: whether its readers are given images from an open pool."""
        current = Protocol.objects.filter(study=OuterRef("pk"), version=OuterRef("protocol_version"))
        return self.annotate(has_pool=Exists(current.filter(overlap_target__isnull=False)))

    def with_phantoms(self) -> Self:
        """For lists: ``shows_phantoms`` takes no query of its own then."""
        phantoms = Study.images.through.objects.filter(study=OuterRef("pk"), image__is_phantom=True)
        return self.annotate(has_phantoms=Exists(phantoms))


class Study(models.Model):
    """A set of images that its readers rate blind."""

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    name = models.CharField(max_length=200, unique=True)
    description = models.TextField(blank=True)
    order_seed = models.PositiveBigIntegerField()  # each reader's order follows from it and the reader's key
    protocol_version = models.PositiveIntegerField(default=1)  # of the Protocol that holds now
    frozen_at = models.DateTimeField(null=True, editable=False)  # first rating under that version; None: may change
    # Whether every image is grey of more than 8 bits, so that readers get all of that (reader_images).
    has_full_depth = models.BooleanField(default=False, editable=False)
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
