"""Certificates, the jobs that serve under them, and what later ratings say of them. Rows are only ever added; of a
certificate nothing changes but that it is revoked. (generation.models names these models; references are by name.)"""

from math import floor
from typing import TYPE_CHECKING, Any, Self

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.urls import reverse

from medsyn.modalities import ALL_KINDS
from medsyn.percent import percent

if TYPE_CHECKING:  # it brings numpy and scipy.special, half a second of every command's start: only where needed
    from generation.certificate import Drift

_KIND_CHOICES = [(kind.slug, kind.prefix) for kind in ALL_KINDS]
_BATCHES = (100, 500)  # of the next so many images served, how many may be poor


class CertificateQuerySet(models.QuerySet):
    def issued(self) -> Self:
        """Tests that found a threshold, revoked ones among them."""
        return self.filter(status=Certificate.Status.ISSUED)

    def valid(self) -> Self:
        """What may be served under."""
        return self.issued().filter(revoked_at=None)


class Certificate(models.Model):
    """One test of one kind of a release's images: the promise and its threshold, or why it was refused.

    Both are kept: each test on a calibration set spends a part of delta, whatever it finds.
    """

    class Status(models.TextChoices):
        ISSUED = "issued", "Certified"
        REFUSED = "refused", "Refused"

    release = models.ForeignKey("generation.Release", on_delete=models.PROTECT, related_name="certificates")
    kind = models.CharField(max_length=20, choices=_KIND_CHOICES, db_index=True)
    status = models.CharField(max_length=10, choices=Status)
    alpha = models.FloatField()  # largest share of poor images among those served
    delta = models.FloatField()  # probability of a broken promise, of all kinds claimed together
    num_kinds = models.PositiveSmallIntegerField(default=1)  # kinds claimed together
    calibration_set = models.UUIDField()  # public id of the plan that drew the calibration images
    version = models.PositiveIntegerField(default=1)  # which test on this calibration set, from 1
    spent_delta = models.FloatField()  # what this test could spend of delta
    num_images = models.PositiveIntegerField()  # rated calibration images
    num_poor = models.PositiveIntegerField()  # those of them that the panel calls poor
    threshold = models.FloatField(null=True)  # of the certified score; None: refused
    served_share = models.FloatField(null=True)  # share of unrated images with at least that score
    poor_bound = models.FloatField(null=True)  # Clopper and Pearson's upper bound of the poor share at the threshold
    refusal = models.TextField(blank=True)  # why, in a sentence
    # How many more rated images than num_images would be enough in 4 of 5 cases; None: no number would.
    num_further = models.PositiveIntegerField(null=True)
    pipeline = models.JSONField()  # what is frozen, part by part (generation.certification.frozen_pipeline)
    manifest = models.JSONField()  # steps, power curve, label rule, kappa, where the ratings are from
    hash = models.CharField(max_length=64, db_index=True)  # of everything that was fixed before the ratings
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    revoked_at = models.DateTimeField(null=True)
    revocation = models.TextField(blank=True)  # why, in a sentence

    objects = CertificateQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-pk"]
        constraints = [
            models.UniqueConstraint(fields=["calibration_set", "kind", "version"], name="certificate_test_once"),
            models.CheckConstraint(
                condition=Q(alpha__gt=0, alpha__lt=1, delta__gt=0, delta__lt=1, spent_delta__gt=0)
                & Q(spent_delta__lte=F("delta")),
                name="certificate_promise_range",
            ),
            models.CheckConstraint(
                condition=Q(
                    status="issued",
                    threshold__isnull=False,
                    served_share__isnull=False,
                    poor_bound__isnull=False,
                    refusal="",
                )
                | (Q(status="refused", threshold__isnull=True, revoked_at__isnull=True) & ~Q(refusal="")),
                name="certificate_issued_or_refused",
            ),
            models.CheckConstraint(
                condition=Q(revoked_at__isnull=True, revocation="")
                | (Q(revoked_at__isnull=False) & ~Q(revocation="")),
                name="certificate_revoked_with_reason",
            ),
            models.CheckConstraint(condition=Q(num_poor__lte=F("num_images")), name="certificate_poor_of_images"),
        ]

    def __str__(self) -> str:
        return f"Certificate {self.pk}: {self.get_kind_display()}, {self.release}"

    def get_absolute_url(self) -> str:
        return reverse("certificates:certificate", args=[self.pk])

    @property
    def is_valid(self) -> bool:
        return self.status == self.Status.ISSUED and self.revoked_at is None

    @property
    def frozen(self) -> dict[str, Any]:
        """The certified pipeline, part by part. Where it was hashed without what images were computed in, that stands
        beside it, by the rows of the calibration images."""
        return self.pipeline | self.manifest.get("arithmetic", {})

    @property
    def num_wanted(self) -> int | None:
        """Rated images that a new draw needs after a refusal: a set that was tested is used up."""
        return None if self.num_further is None else self.num_images + self.num_further

    @property
    def percent_poor(self) -> str:
        """alpha as people read it: "10 %"."""
        return percent(self.alpha)

    @property
    def sentence(self) -> str:
        """The promise, in one sentence."""
        together = f" (for all {self.num_kinds} kinds claimed together)" if self.num_kinds > 1 else ""
        return (
            f"With probability at least {percent(1 - self.delta)} over the calibration ratings{together}, at most "
            f"{self.percent_poor} of the {self.get_kind_display()} images served are ones that the panel calls poor."
        )

    @property
    def batch_statements(self) -> list[tuple[int, int]]:
        """(images served next, most of them that are poor), each with probability 1 - spent_delta - 0.05."""
        from generation.certificate import most_poor_of_next

        return [(number, most_poor_of_next(number, self.alpha)) for number in _BATCHES]

    @property
    def batch_confidence(self) -> float:
        """What each of these statements holds with at least, in whole hundredths of a percent."""
        return floor(1e4 * (1 - self.spent_delta - 0.05) + 1e-6) / 1e4

    @property
    def drift(self) -> "Drift":
        """Where the bet against the promise stands, by the stored observations."""
        from generation.certificate import Drift

        last = self.observations.order_by("-position").values_list("capital", flat=True).first()
        return Drift(self.alpha) if last is None else Drift(self.alpha, capital=last)


class CertificateObservation(models.Model):
    """The panel's verdict of one randomly drawn image that was served, in the order in which it was drawn."""

    certificate = models.ForeignKey(Certificate, on_delete=models.PROTECT, related_name="observations")
    position = models.PositiveIntegerField()  # from 0, without gaps
    image = models.ForeignKey("generation.GeneratedImage", on_delete=models.PROTECT, related_name="+")
    is_poor = models.BooleanField()
    capital = models.FloatField()  # of the bet, afterwards
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["certificate", "position"]
        constraints = [
            models.UniqueConstraint(fields=["certificate", "position"], name="observation_position_once"),
            models.UniqueConstraint(fields=["certificate", "image"], name="observation_image_once"),
            models.CheckConstraint(condition=Q(capital__gt=0), name="observation_capital_positive"),
        ]

    def __str__(self) -> str:
        return f"{self.certificate_id}/{self.position}: {'poor' if self.is_poor else 'not poor'}"


class CertifiedJob(models.Model):
    """A job that was started under a certificate: what it serves is what the certificate speaks of."""

    job = models.OneToOneField("generation.GenerationJob", on_delete=models.CASCADE, related_name="certified")
    certificate = models.ForeignKey(Certificate, on_delete=models.PROTECT, related_name="jobs")

    def __str__(self) -> str:
        return f"{self.job_id} under {self.certificate_id}"
