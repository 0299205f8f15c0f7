"""CSV -> selector + policy -> release: the runs and the checkpoints they left."""

from pathlib import Path

from django.conf import settings
from django.db import models
from django.urls import reverse

from generation.models import Release
from medsyn.jobs import Job
from ratings.models import Export


class TrainingRun(Job):
    class Purpose(models.TextChoices):
        RLHF = "rlhf", "Selector and policy"
        FINETUNE = "finetune", "Fine-tune the generator"

    purpose = models.CharField(max_length=10, choices=Purpose)
    name = models.CharField(max_length=100, blank=True)
    config = models.JSONField()  # resolved: what config.json in the run directory holds
    generator = models.CharField(
        max_length=500
    )  # the base model, or the one whose images were rated: folder or hub id
    run_directory = models.CharField(max_length=500, unique=True)  # below the artifact root, or absolute
    export = models.ForeignKey(Export, null=True, blank=True, on_delete=models.PROTECT, related_name="runs")
    parent_release = models.ForeignKey(
        Release, null=True, blank=True, on_delete=models.PROTECT, related_name="child_runs"
    )
    release = models.ForeignKey(Release, null=True, blank=True, on_delete=models.PROTECT, related_name="source_runs")
    is_simulated = models.BooleanField(default=False)  # learns from simulated ratings
    figures = models.JSONField(default=dict)  # the final report: AUC, pass rate, seconds; `report` is a verb of Job
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.name or f"{self.get_purpose_display()} {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("training:run", args=[self.pk])

    @property
    def path(self) -> Path:
        return settings.ARTIFACT_ROOT / self.run_directory


class Checkpoint(models.Model):
    """A complete checkpoint folder of a run."""

    run = models.ForeignKey(TrainingRun, on_delete=models.PROTECT, related_name="checkpoints")
    name = models.CharField(max_length=100)  # epoch_10, checkpoint-500: the folder in the run directory
    step = models.PositiveIntegerField()
    manifest_sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["step"]
        constraints = [models.UniqueConstraint(fields=["run", "name"], name="checkpoint_once_per_run")]

    def __str__(self) -> str:
        return f"{self.run_id}/{self.name}"

    @property
    def path(self) -> Path:
        return self.run.path / self.name
