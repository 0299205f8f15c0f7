"""Who reads: levels that somebody verified, and readers of studies."""

from typing import Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from ratings.models.studies import Study

LEVEL_VALIDATORS = [MinValueValidator(1), MaxValueValidator(3)]


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
