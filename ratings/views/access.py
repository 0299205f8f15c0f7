"""Whose study it is, and the question that stands in place of its grades."""

from collections.abc import Sequence
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render

from ratings.models import Study


def managed_study(request: HttpRequest, study_id: UUID) -> Study:
    """The study, if the person runs it; 404 otherwise."""
    return get_object_or_404(Study.objects.managed_by(request.user), public_id=study_id)


def ask_first(request: HttpRequest, studies: Sequence[Study]) -> HttpResponse:
    """The question in place of what would tell grades of ``studies``: a refusal, so that nobody stores it as a
    table."""
    return render(request, "ratings/grades_hidden.html", {"studies": studies}, status=403)
