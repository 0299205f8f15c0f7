"""People and how they come in: invitations, and what was done to an account."""

import hashlib
from typing import Self

from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import models
from django.db.models import Case, Count, Exists, OuterRef, Q, Subquery, Value, When
from django.db.models.functions import Coalesce, Lower
from django.urls import reverse
from django.utils import timezone

from medsyn.roles import STUDY_OWNERS
from ratings.models import LEVEL_VALIDATORS, Expertise, Membership, Study

PASSWORD_LINK_DAYS = 1


class Role(models.TextChoices):
    """What an account may do: medsyn.roles says how it follows from the row."""

    CLINICIAN = "clinician", "Clinician"
    OWNER = "owner", "Study owner"
    ADMIN = "admin", "Administrator"


class PersonQuerySet(models.QuerySet):
    def named(self, name: str) -> Self:
        """Whoever signs in under this user name or e-mail address."""
        return self.filter(Q(username__iexact=name) | ~Q(email="") & Q(email__iexact=name))

    def signing_in(self) -> Self:
        """Those who can have a password: readers of imported ratings and simulated experts have none."""
        return self.exclude(password__startswith="!")

    def in_full(self) -> Self:
        """With role, level (None: never verified), num_studies and has_second_factor, in one query."""
        is_owner = Group.objects.filter(user=OuterRef("pk"), name=STUDY_OWNERS)
        level = Expertise.objects.filter(person=OuterRef("pk")).order_by("-pk").values("expert_level")[:1]
        studies = Membership.objects.filter(reader=OuterRef("pk")).order_by().values("reader").annotate(n=Count("pk"))
        totp = Authenticator.objects.filter(user=OuterRef("pk"), type=Authenticator.Type.TOTP)
        return self.annotate(
            role=Case(
                When(is_staff=True, then=Value(Role.ADMIN.value)),
                When(Exists(is_owner), then=Value(Role.OWNER.value)),
                default=Value(Role.CLINICIAN.value),
            ),
            level=Subquery(level),
            num_studies=Coalesce(Subquery(studies.values("n")), 0),
            has_second_factor=Exists(totp),
        )


class Person(get_user_model()):
    """An account, as the pages of people see it."""

    objects = PersonQuerySet.as_manager()

    class Meta:
        proxy = True
        verbose_name_plural = "people"

    def get_absolute_url(self) -> str:
        return reverse("accounts:person", args=[self.pk])


class InvitationQuerySet(models.QuerySet):
    def outstanding(self) -> Self:
        """Neither used nor withdrawn; they may be too old."""
        return self.filter(accepted_at=None, revoked_at=None)

    def usable(self) -> Self:
        """Their link works: for a closed account none does."""
        return self.outstanding().filter(Q(person=None) | Q(person__is_active=True), expires_at__gt=timezone.now())

    def with_token(self, token: str) -> Self:
        return self.filter(token_sha256=token_sha256(token))


def token_sha256(token: str) -> str:
    """What is stored of a link's token: 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


class Invitation(models.Model):
    """A link that lets one person in once: to join, or to choose a new password."""

    class Kind(models.TextChoices):
        JOIN = "join", "Invitation"
        PASSWORD = "password", "New password"

    kind = models.CharField(max_length=10, choices=Kind, default=Kind.JOIN)
    token_sha256 = models.CharField(max_length=64, unique=True)
    email = models.EmailField(blank=True)  # the address it is bound to
    first_name = models.CharField(max_length=150, blank=True)
    last_name = models.CharField(max_length=150, blank=True)
    role = models.CharField(max_length=10, choices=Role, default=Role.CLINICIAN)
    expert_level = models.PositiveSmallIntegerField(null=True, blank=True, validators=LEVEL_VALIDATORS)
    specialty = models.CharField(max_length=200, blank=True)
    level_note = models.TextField(blank=True)  # what the level rests on
    verified_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")
    studies = models.ManyToManyField(Study, blank=True, related_name="+")  # joined on acceptance
    person = models.ForeignKey(  # whose new password it is; of an invitation, who came of it
        settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="invitations"
    )
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    mailed_at = models.DateTimeField(null=True)
    accepted_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    objects = InvitationQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                Lower("email"),
                condition=Q(kind="join", accepted_at=None, revoked_at=None),
                name="invitation_outstanding_once_per_email",
            ),
            models.CheckConstraint(
                condition=Q(expert_level=None) | Q(expert_level__range=(1, 3), verified_by__isnull=False),
                name="invitation_level_verified",
            ),
            models.CheckConstraint(
                condition=Q(kind="join") & ~Q(email="") | Q(kind="password", person__isnull=False),
                name="invitation_for_somebody",
            ),
            models.CheckConstraint(
                condition=Q(accepted_at=None) | Q(revoked_at=None), name="invitation_used_or_withdrawn"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} for {self.email or self.person_id}"

    @property
    def days(self) -> int:
        """How long a link of this kind works."""
        return settings.INVITATION_DAYS if self.kind == self.Kind.JOIN else PASSWORD_LINK_DAYS

    @property
    def is_expired(self) -> bool:
        return self.expires_at <= timezone.now()


class AccountEvent(models.Model):
    """What was done to an account, by whom and why. Rows are only ever added."""

    class Action(models.TextChoices):
        JOINED = "joined", "Joined by invitation"
        ROLE = "role", "Role changed"
        CLOSED = "closed", "Account closed"
        OPENED = "opened", "Account opened again"
        PASSWORD_LINK = "password_link", "Link for a new password made"
        PASSWORD = "password", "New password chosen by link"
        SECOND_FACTOR = "second_factor", "Second factor reset"

    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="account_events")
    action = models.CharField(max_length=15, choices=Action)
    note = models.TextField(blank=True)
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.get_action_display()}: {self.person_id}"


class CacheRow(models.Model):
    """The table of Django's database cache, as a model so that ``migrate`` makes it. Only the cache uses it.

    Its columns are those of django.core.management.commands.createcachetable.
    """

    cache_key = models.CharField(max_length=255, primary_key=True)
    value = models.TextField()
    expires = models.DateTimeField(db_index=True)

    class Meta:
        db_table = "medsyn_cache"

    def __str__(self) -> str:
        return self.cache_key
