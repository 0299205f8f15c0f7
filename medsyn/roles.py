"""Who may do what, without a row of any app: three roles, asked for in one place.

A *clinician* reads the studies that they were added to. A *study owner* also makes studies, and runs those that they
made. An *administrator* (``is_staff``) may do everything. Which studies somebody runs is for ``ratings`` to say; here
is only what follows from the account. The groups are made by a migration of ``accounts``.
"""

from django.contrib.auth.mixins import UserPassesTestMixin
from django.http import Http404, HttpRequest
from django.utils.functional import SimpleLazyObject
from rest_framework.permissions import BasePermission

CLINICIANS = "Clinicians"
STUDY_OWNERS = "Study owners"


def is_admin(user) -> bool:
    """Whether the person may do everything."""
    return bool(user.is_authenticated and user.is_staff)


def is_study_owner(user) -> bool:
    """Whether the person may make studies and run their own: study owners, and administrators.

    At most one query for each user object (each request has one of its own), none for administrators.
    """
    if not user.is_authenticated:
        return False
    if user.is_staff:
        return True
    if not hasattr(user, "_is_in_study_owners"):
        user._is_in_study_owners = user.groups.filter(name=STUDY_OWNERS).exists()
    return user._is_in_study_owners


def for_templates(request: HttpRequest) -> dict:
    """Context processor: ``is_study_owner``, asked for only where a template looks at it."""
    user = getattr(request, "user", None)
    return {"is_study_owner": SimpleLazyObject(lambda: user is not None and is_study_owner(user))}


class _RoleMixin(UserPassesTestMixin):
    """For whoever has the role; for everybody else the page does not exist."""

    def handle_no_permission(self):
        raise Http404


class StaffMixin(_RoleMixin):
    """For administrators; for everybody else the page does not exist."""

    def test_func(self) -> bool:
        return is_admin(self.request.user)


class OwnerMixin(_RoleMixin):
    """For study owners and administrators; for everybody else the page does not exist.

    It opens the page, not the study: a view looks its study up among those that the person runs.
    """

    def test_func(self) -> bool:
        return is_study_owner(self.request.user)


class IsAdmin(BasePermission):
    """API: administrators."""

    def has_permission(self, request, view) -> bool:
        return is_admin(request.user)


class IsStudyOwner(BasePermission):
    """API: study owners and administrators; the view's queryset says whose studies."""

    def has_permission(self, request, view) -> bool:
        return is_study_owner(request.user)
