"""CSV -> selector + policy -> release: the runs and the checkpoints they left."""

from pathlib import Path
from typing import Self

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.db.models import CharField, Exists, OuterRef, Q, Value
from django.db.models.functions import Cast, Concat
from django.urls import reverse
from django.utils import timezone

from generation.models import Release
from medsyn.jobs import Job, JobQuerySet
from ratings.models import Export
from training.devices import device_of, short_name

_UPDATE_AFTER = "updates/after-run-"  # with the key of the run that it follows, an update's directory


class TrainingRunQuerySet(JobQuerySet):
    def waiting(self) -> Self:
        """Queued runs, the one that has waited longest first."""
        return self.filter(state=Job.State.QUEUED).order_by("queued_at", "pk")

    def ahead_of(self, pk: int) -> Self:
        """Those that were queued before the run ``pk``; none where there is no such run."""
        asked = self.model.objects.filter(pk=pk).values_list("queued_at", flat=True).first()
        if asked is None:
            return self.none()
        return self.filter(Q(queued_at__lt=asked) | Q(queued_at=asked, pk__lt=pk))

    def at_work(self) -> Self:
        """Running ones whose worker has reported within the lease."""
        return self.filter(state=Job.State.RUNNING).exclude(pk__in=self.abandoned().values("pk")).order_by("pk")

    def hand_back(self) -> int:
        """Runs whose worker died go back to their place in the queue, or end where that was asked for.

        Returns their number. A worker that was only silent loses its claim by this: it can write nothing more.
        """
        lost = self.abandoned()
        ended = lost.filter(cancel_requested=True).update(state=Job.State.CANCELLED, finished_at=timezone.now())
        return ended + lost.update(state=Job.State.QUEUED)

    def lacking_their_update(self) -> Self:
        """Runs that have succeeded and asked for an update of their generator that nobody has queued or refused."""
        directory = Concat(Value(_UPDATE_AFTER), Cast(OuterRef("pk"), CharField()))
        return self.filter(
            ~Exists(self.model.objects.filter(run_directory=directory)),
            purpose=self.model.Purpose.RLHF,
            state=Job.State.SUCCEEDED,
            config__synthetic_system__enable_training=True,
            error="",
        )


class TrainingRun(Job):
    class Purpose(models.TextChoices):
        RLHF = "rlhf", "Selector and policy"
        FINETUNE = "finetune", "Fine-tune the generator"
        UPDATE = "update", "Update the generator"

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
    # Where it was last claimed: "<host>/cpu", "<host>/cuda:0". Two runs never have one device at a time.
    device = models.CharField(max_length=200, blank=True, editable=False)
    queued_at = models.DateTimeField(default=timezone.now, editable=False)  # its place in the queue
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL)

    objects = TrainingRunQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["device"], condition=Q(state="running") & ~Q(device=""), name="one_run_per_device"
            )
        ]

    def __str__(self) -> str:
        return self.name or f"{self.get_purpose_display()} {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("training:run", args=[self.pk])

    @property
    def path(self) -> Path:
        return settings.ARTIFACT_ROOT / self.run_directory

    @property
    def update_directory(self) -> str:
        """Of the one update that follows the run; run directories are unique, so there is never a second."""
        return f"{_UPDATE_AFTER}{self.pk}"

    @classmethod
    def claim(cls, pk: int, **also: object) -> Self | None:
        """Take the run for this worker; None where there is nothing to take or another run has the device.

        Two workers of one device may ask at once: the constraint one_run_per_device lets one of them in.
        """
        run = cls.objects.filter(pk=pk).first()
        if run is None:
            return None
        device = device_of(run.wants_gpu)
        cls.objects.filter(device=device).exclude(pk=pk).hand_back()
        try:
            with transaction.atomic():
                return super().claim(pk, device=device, **also)
        except IntegrityError:
            return None

    @property
    def device_name(self) -> str:
        """The device it was last claimed for, in words; empty before."""
        return short_name(self.device)

    @property
    def wants_gpu(self) -> bool:
        """Whether it takes a GPU where there is one; config.yaml may forbid it."""
        return self.config.get("device", {}).get("use_cuda", True)

    def requeue(self) -> None:
        """Put a failed or cancelled run back at the end of the queue; it resumes from what it has stored."""
        super().requeue()
        self.queued_at = timezone.now()
        self.save(update_fields=["queued_at"])


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


from training.reading.models import ReadingBatch, ReadingPick  # noqa: E402, F401
