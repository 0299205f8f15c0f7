"""Batches of images that were chosen for a study, and why each of them was."""

from math import log
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.urls import reverse

from generation.models import GeneratedImage, GenerationJob, Release
from medsyn.jobs import Job, JobQuerySet
from ratings.models import Study

_MOST_INFORMATION = log(2) + 1e-9  # nats


class ReadingBatchQuerySet(JobQuerySet):
    def managed_by(self, user) -> Self:
        """Batches of studies that the person runs."""
        return self.filter(study__in=Study.objects.managed_by(user))

    def unfinished(self) -> Self:
        """Queued and running ones."""
        return self.filter(state__in=(Job.State.QUEUED, Job.State.RUNNING))


class ReadingBatch(Job):
    """Images that are chosen from the pool of some generation jobs and put into a study: part of them at random, the
    others by the disagreement of the heads of a release's selector (training.rlhf.reading_list).

    What was asked for, the pool and the seed are kept, so that the choice can be made again.
    """

    study = models.ForeignKey(Study, on_delete=models.PROTECT, related_name="reading_batches")
    jobs = models.ManyToManyField(GenerationJob, related_name="+")  # whose images are the pool
    release = models.ForeignKey(Release, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    num_images = models.PositiveIntegerField()
    random_share = models.FloatField()  # of the batch
    exploring_share = models.FloatField()  # of the model's part: drawn at random too
    shortlist_share = models.FloatField()  # of each kind: among how many images the model's picks are spread
    with_rejected = models.BooleanField()  # whether candidates that a filter rejected are in the pool
    seed = models.PositiveBigIntegerField()
    pool = models.JSONField(default=list, editable=False)  # keys of its images, in the order that was chosen from
    block = models.PositiveIntegerField(null=True, editable=False)  # of the study, that the images became
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    objects = ReadingBatchQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.CheckConstraint(
                condition=Q(random_share__gte=0, random_share__lte=1, exploring_share__gte=0, exploring_share__lte=1)
                & Q(shortlist_share__gt=0, shortlist_share__lte=1, num_images__gte=1),
                name="reading_batch_shares",
            ),
            models.CheckConstraint(
                condition=Q(random_share=1) | Q(release__isnull=False), name="reading_batch_has_chooser"
            ),
            models.UniqueConstraint(
                fields=["study"], condition=Q(state__in=("queued", "running")), name="one_reading_batch_at_a_time"
            ),
        ]

    def __str__(self) -> str:
        return f"Batch {self.pk} for {self.study}"

    def get_absolute_url(self) -> str:
        return reverse("training:reading-batch", args=[self.study.public_id, self.pk])

    @property
    def is_random(self) -> bool:
        """Whether no model has a say."""
        return self.random_share == 1


class ReadingPick(models.Model):
    """An image of a batch, and why it was chosen."""

    class Reason(models.TextChoices):
        RANDOM = "random", "Drawn at random from the pool"
        MODEL = "model", "The selector's heads disagree"
        EXPLORING = "exploring", "Drawn at random beside the model's"

    batch = models.ForeignKey(ReadingBatch, on_delete=models.CASCADE, related_name="picks")
    image = models.ForeignKey(GeneratedImage, on_delete=models.PROTECT, related_name="reading_picks")
    position = models.PositiveIntegerField()  # in the order of choice, from 0
    reason = models.CharField(max_length=10, choices=Reason)
    # BALD, mutual information of verdict and head in nats, 0..ln 2; None: no model was asked.
    information = models.FloatField(null=True)
    poor = models.FloatField(null=True)  # mean P(poor) over the selector's heads

    class Meta:
        ordering = ["batch", "position"]
        constraints = [
            models.UniqueConstraint(fields=["batch", "image"], name="reading_pick_once"),
            models.UniqueConstraint(fields=["batch", "position"], name="reading_pick_position_once"),
            models.CheckConstraint(
                condition=Q(information__isnull=True, poor__isnull=True, reason="random")
                | Q(information__isnull=False, poor__isnull=False)
                & Q(information__gte=0, information__lte=_MOST_INFORMATION, poor__gte=0, poor__lte=1),
                name="reading_pick_values",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.batch_id}/{self.position}"
