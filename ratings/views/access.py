"""Whose study it is."""

from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404

from ratings.models import Study


def managed_study(request: HttpRequest, study_id: UUID) -> Study:
    """The study, if the person runs it; 404 otherwise."""
    return get_object_or_404(Study.objects.managed_by(request.user), public_id=study_id)


def is_still_blind(study: Study, user) -> bool:
    """Whether the person has images of the study left to rate: who knows the others' grades is blind no more."""
    return study.is_open and study.assignments.filter(reader=user).open().exists()
