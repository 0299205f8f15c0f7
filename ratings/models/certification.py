"""Images that were drawn for calibration, and what was fixed before anybody rated them."""

import uuid

from django.conf import settings
from django.db import models
from django.db.models import Q

from generation.models import Certificate, GeneratedImage, GenerationJob, Release
from ratings.models.studies import Study


class CalibrationPlan(models.Model):
    """A study whose images are a uniform draw, for certificates or to watch over one. Written before the first rating
    and never changed: what is promised, the frozen pipeline, thresholds, label rule and draw are settled here."""

    class Purpose(models.TextChoices):
        CERTIFY = "certify", "Calibration"
        MONITOR = "monitor", "Drift monitor"

    public_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    purpose = models.CharField(max_length=10, choices=Purpose, default=Purpose.CERTIFY)
    study = models.OneToOneField(Study, on_delete=models.PROTECT, related_name="calibration_plan")
    release = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="+")
    jobs = models.ManyToManyField(GenerationJob, related_name="+")  # whose images it drew from
    # Monitored; None: calibration for certificates to come.
    certificate = models.ForeignKey(
        Certificate, null=True, blank=True, on_delete=models.PROTECT, related_name="monitoring_plans"
    )
    kinds = models.JSONField()  # slugs, claimed together
    alpha = models.FloatField()
    delta = models.FloatField()
    is_reusable = models.BooleanField(
        default=False
    )  # may be tested several times: the v-th spends 6 delta / (pi v)^2
    seed = models.PositiveBigIntegerField()  # of the draw, and of the rater who decides where fewer than three rated
    label_rule = models.TextField()
    pipelines = models.JSONField(default=dict)  # by kind: generation.certification.frozen_pipeline
    thresholds = models.JSONField(
        default=dict
    )  # by kind: generation.certificate.thresholds_of unrated images' scores
    num_unrated = models.JSONField(default=dict)  # by kind: images that the thresholds come from
    own_size = models.JSONField(default=dict)  # {"height", "width"} of the images, pixels
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.CheckConstraint(
                condition=Q(alpha__gt=0, alpha__lt=1, delta__gt=0, delta__lt=1), name="calibration_promise_range"
            ),
            models.CheckConstraint(
                condition=Q(purpose="certify", certificate__isnull=True)
                | Q(purpose="monitor", certificate__isnull=False),
                name="calibration_monitors_a_certificate",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_purpose_display()}: {self.study}"


class CalibrationImage(models.Model):
    """An image that was drawn for a plan. It is in no other study, is read for nothing else, and stays: triggers of
    the database see to that (ratings.calibration_guards)."""

    plan = models.ForeignKey(CalibrationPlan, on_delete=models.PROTECT, related_name="calibration_images")
    study = models.ForeignKey(Study, on_delete=models.PROTECT, related_name="+")  # the plan's: what the triggers read
    image = models.OneToOneField(GeneratedImage, on_delete=models.PROTECT, related_name="calibration")
    position = models.PositiveIntegerField()  # in the order of the draw, from 0

    class Meta:
        ordering = ["plan", "position"]
        constraints = [models.UniqueConstraint(fields=["plan", "position"], name="calibration_position_once")]

    def __str__(self) -> str:
        return f"{self.plan_id}/{self.position}"
