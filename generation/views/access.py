"""Who may open the pages of generation."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse

from medsyn.roles import is_study_owner


def staff_only(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """403 for readers; people who have not signed in were sent to the sign-in page before (middleware)."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not request.user.is_staff:
            raise PermissionDenied("Only administrators generate images and look at where they come from.")
        return view(request, *args, **kwargs)

    return guarded


def owners_too(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """For study owners as well: they choose images for their studies. 404 for everybody else."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not is_study_owner(request.user):
            raise Http404
        return view(request, *args, **kwargs)

    return guarded
