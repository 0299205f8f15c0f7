"""Prompt -> image: what was asked for, by which release, and what came out."""

import uuid
from pathlib import Path
from typing import Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.urls import reverse

from medsyn.jobs import Job
from medsyn.modalities import ALL_KINDS, ParsedPrompt, kind_from_name, parse_prompt

KIND_CHOICES = [(kind.slug, kind.prefix) for kind in ALL_KINDS]


class Prompt(models.Model):
    """A prompt in canonical spelling; every text exists once."""

    text = models.TextField(unique=True)
    kind = models.CharField(max_length=20, choices=KIND_CHOICES, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.text

    @property
    def parsed(self) -> ParsedPrompt:
        return parse_prompt(self.text)

    @property
    def modality(self) -> str:
        return kind_from_name(self.kind).modality


class Release(models.Model):
    """A generator with its selector, policy and threshold: what the application serves.

    Content-addressed: ``digest`` covers every file and the threshold, and names the folder
    ``<artifact root>/releases/<digest>/``, which holds pipeline/, selector_checkpoint.safetensors,
    policy_checkpoint.safetensors and a manifest. At most one release is active.
    """

    digest = models.CharField(max_length=64, unique=True)
    name = models.CharField(max_length=100)
    pipeline_sha256 = models.CharField(max_length=64)
    selector_sha256 = models.CharField(max_length=64)
    policy_sha256 = models.CharField(max_length=64)
    gates_sha256 = models.CharField(max_length=64, blank=True)  # of gates_checkpoint.safetensors; empty: it has none
    quality_threshold = models.FloatField(validators=[MinValueValidator(0), MaxValueValidator(1)])
    manifest = models.JSONField()  # as on disk: parents, training figures, code version
    is_simulated = models.BooleanField(default=False)  # trained on simulated ratings
    is_active = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)
    activated_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(fields=["is_active"], condition=Q(is_active=True), name="one_active_release"),
            models.CheckConstraint(
                condition=Q(quality_threshold__gte=0, quality_threshold__lte=1), name="release_threshold_range"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.digest[:8]})"

    @property
    def folder(self) -> Path:
        return settings.ARTIFACT_ROOT / "releases" / self.digest


class GenerationJob(Job):
    class Mode(models.TextChoices):
        BASELINE = "baseline", "Baseline: every image is kept"
        RLHF = "rlhf", "RLHF: only what selector and policy accept"

    mode = models.CharField(max_length=10, choices=Mode, default=Mode.BASELINE)
    prompts = models.ManyToManyField(Prompt, through="JobPrompt", related_name="jobs")
    num_images = models.PositiveIntegerField(default=3, validators=[MinValueValidator(1), MaxValueValidator(10_000)])
    seed = models.BigIntegerField()  # image i of the job uses seed + i
    release = models.ForeignKey(Release, null=True, blank=True, on_delete=models.PROTECT, related_name="jobs")
    pretrained_model = models.CharField(max_length=500, blank=True)  # folder or hub id; empty: release or medsyn-tiny
    # num_inference_steps, guidance_scale, guidance_interval, negative_prompt, scheduler, height, width, batch_size,
    # quality_threshold, max_attempts, num_candidates: resolved values, as generation.services.Parameters has them
    parameters = models.JSONField(default=dict)
    # rlhf: generation.filtering.Ledger.as_record: "unet_evaluations", "candidates", "stopped", "dropped", "accepted",
    # "places". What was half drawn when a worker ended is not in it.
    spent = models.JSONField(default=dict, editable=False)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Generation {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("generation:job", args=[self.pk])


class JobPrompt(models.Model):
    """The prompts of a job in their order."""

    job = models.ForeignKey(GenerationJob, on_delete=models.CASCADE, related_name="job_prompts")
    prompt = models.ForeignKey(Prompt, on_delete=models.PROTECT, related_name="+")
    position = models.PositiveIntegerField()

    class Meta:
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["job", "position"], name="job_prompt_position")]

    def __str__(self) -> str:
        return f"{self.job_id}/{self.position}"


class GeneratedImageQuerySet(models.QuerySet):
    def accepted(self) -> Self:
        """Images that passed selector and policy."""
        return self.filter(verdict=GeneratedImage.Verdict.ACCEPTED)

    def real(self) -> Self:
        """Images of patients."""
        return self.filter(is_real=True)

    def synthetic(self) -> Self:
        """Everything else: drawn here or elsewhere."""
        return self.filter(is_real=False)

    def batches(self) -> models.QuerySet:
        """Names under which images were imported, the newest first, with their number: rows of batch, number."""
        named = self.exclude(batch="").order_by().values("batch")
        return named.annotate(number=models.Count("pk"), newest=models.Max("pk")).order_by("-newest")

    def ungated(self) -> Self:
        """Candidates that no gate could stop, of which is known whether the gates would have."""
        return self.filter(gates_would_stop__isnull=False)

    def served(self) -> Self:
        """What may be handed on: everything but rejected candidates and copies of training images."""
        return self.exclude(verdict__in=GeneratedImage.WITHHELD)

    def blocked(self) -> Self:
        """Copies of training images, by the memory index (generation.memorisation)."""
        return self.filter(verdict=GeneratedImage.Verdict.BLOCKED)

    def unblocked(self) -> Self:
        """Everything else. Who is no administrator sees nothing but these."""
        return self.exclude(verdict=GeneratedImage.Verdict.BLOCKED)


class GeneratedImage(models.Model):
    """One image with everything needed to make it again."""

    class Source(models.TextChoices):
        GENERATED = "generated", "Generated here"
        IMPORTED = "imported", "Imported"

    class Verdict(models.TextChoices):
        UNFILTERED = "unfiltered", "Not filtered"
        ACCEPTED = "accepted", "Accepted"
        REJECTED = "rejected", "Rejected"
        BLOCKED = "blocked", "Blocked: copies a training image"

    WITHHELD = (Verdict.REJECTED, Verdict.BLOCKED)  # never handed on

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    source = models.CharField(max_length=10, choices=Source, default=Source.GENERATED)
    job = models.ForeignKey(GenerationJob, null=True, blank=True, on_delete=models.PROTECT, related_name="images")
    prompt = models.ForeignKey(Prompt, on_delete=models.PROTECT, related_name="images")
    release = models.ForeignKey(Release, null=True, blank=True, on_delete=models.PROTECT, related_name="images")
    model_name = models.CharField(max_length=500, blank=True)  # "medsyn-tiny", a folder's name, a hub id
    weights_sha256 = models.CharField(max_length=64, blank=True)
    is_phantom = models.BooleanField(default=False)  # drawn by medsyn-tiny or a model fine-tuned from it
    is_real = models.BooleanField(default=False)  # of a patient, not synthetic
    patient = models.CharField(max_length=100, blank=True)  # pseudonym: keeps a patient's images together
    batch = models.CharField(max_length=100, blank=True, db_index=True)  # under which name it was imported
    seed = models.BigIntegerField(null=True)
    position = models.PositiveIntegerField(default=0)  # index in the job: seed = job.seed + position
    parameters = models.JSONField(default=dict)  # what the pipeline was called with
    file = models.CharField(max_length=500)  # below the artifact root
    sha256 = models.CharField(max_length=64, db_index=True)  # of the file's bytes
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    verdict = models.CharField(max_length=10, choices=Verdict, default=Verdict.UNFILTERED, db_index=True)
    selector_score = models.FloatField(null=True)
    policy_score = models.FloatField(null=True)
    attempt = models.PositiveIntegerField(default=1)  # which attempt for its place in the job this was
    unet_evaluations = models.PositiveIntegerField(null=True)  # that drawing it took; a guided step counts twice
    # For one candidate in twenty, which no gate may stop: whether the gates would have. Null: the others.
    gates_would_stop = models.BooleanField(null=True, editable=False)
    # The nearest training image: dataset (folder), name, sha256, similarity, p_value. Null where there is no memory
    # index, or the image failed before it was looked at.
    resembles = models.JSONField(null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = GeneratedImageQuerySet.as_manager()

    class Meta:
        ordering = ["job", "position"]
        constraints = [
            models.UniqueConstraint(
                fields=["job", "position"], condition=Q(job__isnull=False), name="job_image_once"
            ),
            models.CheckConstraint(
                condition=Q(source="imported") | Q(job__isnull=False, seed__isnull=False),
                name="generated_image_has_origin",
            ),
            models.CheckConstraint(
                condition=Q(is_real=False) | Q(source="imported", is_phantom=False), name="real_image_is_imported"
            ),
            models.CheckConstraint(
                condition=Q(verdict__in=["unfiltered", "blocked"])
                | Q(selector_score__isnull=False, policy_score__isnull=False),
                name="filtered_image_has_scores",
            ),
            models.CheckConstraint(
                condition=~Q(verdict="blocked") | Q(resembles__isnull=False), name="blocked_image_says_why"
            ),
        ]

    def __str__(self) -> str:
        return str(self.public_id)

    def get_absolute_url(self) -> str:
        return reverse("generation:image", args=[self.public_id])

    @property
    def path(self) -> Path:
        return settings.ARTIFACT_ROOT / self.file


class ReleaseActivation(models.Model):
    """Which release was put into service when, and by whom: nothing is ever taken off this list."""

    release = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="activations")
    activated_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    activated_at = models.DateTimeField()
    is_rollback = models.BooleanField(default=False)  # undid the activation before it

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"{self.release} at {self.activated_at:%Y-%m-%d %H:%M}"


class ImageScore(models.Model):
    """What the filter of a release says of an image that it was shown afterwards, for a comparison of releases."""

    image = models.ForeignKey(GeneratedImage, on_delete=models.CASCADE, related_name="scores")
    release = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="+")
    selector_score = models.FloatField()  # serving score, 0..1
    policy_score = models.FloatField()  # alignment score, 0..1

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["image", "release"], name="image_scored_once_by_release"),
            models.CheckConstraint(
                condition=Q(selector_score__gte=0, selector_score__lte=1, policy_score__gte=0, policy_score__lte=1),
                name="image_score_range",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.image_id} by {self.release_id}"


class ReleaseComparison(Job):
    """Two generators on the same prompts, seeds and parameters: a baseline job of each, its images judged by the
    filter of each release among them. The job that it is itself does the judging."""

    left = models.ForeignKey(GenerationJob, on_delete=models.PROTECT, related_name="+")
    right = models.ForeignKey(GenerationJob, on_delete=models.PROTECT, related_name="+")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.CheckConstraint(condition=~Q(left=models.F("right")), name="comparison_of_two_jobs"),
        ]

    def __str__(self) -> str:
        return f"Comparison {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("generation:comparison", args=[self.pk])

    @property
    def sides(self) -> tuple[GenerationJob, GenerationJob]:
        return self.left, self.right

    @property
    def judges(self) -> list[Release]:
        """The releases whose filters judge, each once, the left one first."""
        releases = {job.release_id: job.release for job in self.sides if job.release is not None}
        return list(releases.values())


class Redrawing(Job):
    """An image drawn again from its row, and how far that came out the same."""

    image = models.ForeignKey(GeneratedImage, on_delete=models.CASCADE, related_name="redrawings")
    requested_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    sha256 = models.CharField(max_length=64, blank=True)  # of the new PNG's bytes
    different_pixels = models.PositiveIntegerField(null=True)  # of width x height; 0: the same picture
    largest_difference = models.PositiveSmallIntegerField(null=True)  # grey levels of one channel, 0..255
    device = models.CharField(max_length=20, blank=True)  # type of the device it was drawn on: cpu, cuda
    file = models.CharField(max_length=500, blank=True)  # below the artifact root; only where it differs

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Redrawing {self.pk} of {self.image_id}"

    @property
    def is_same(self) -> bool:
        return self.state == self.State.SUCCEEDED and self.different_pixels == 0


from generation.certificate_models import Certificate, CertificateObservation, CertifiedJob  # noqa: E402, F401
