"""Whoever has images of a study left to rate is told no grade of others before asking for it: pages and API alike."""

from django.db.models import QuerySet
from django.http import HttpRequest

from ratings.models import Export, RatingQuerySet, Study

_SHOWN = "grades_shown"  # in the session: keys of the studies whose grades the person asked for while rating them


def hidden_studies(request: HttpRequest, studies: QuerySet) -> list[Study]:
    """Those of ``studies`` whose grades are kept from the person, who has images of them left to rate.

    ``?show`` in the address shows them all the same, and for the rest of the session: a program without one says so
    with every request.
    """
    shown = request.session.get(_SHOWN, [])
    hidden = list(studies.left_to_rate_by(request.user).exclude(pk__in=shown))
    if hidden and "show" in request.GET:
        if not request.session.is_empty():
            request.session[_SHOWN] = [*shown, *(study.pk for study in hidden)]
        return []
    return hidden


def is_hidden(request: HttpRequest, study: Study) -> bool:
    """Whether the study's grades are kept from the person: see ``hidden_studies``."""
    return bool(hidden_studies(request, Study.objects.filter(pk=study.pk)))


def told(ratings: RatingQuerySet, request: HttpRequest, hidden: list[Study]) -> RatingQuerySet:
    """``ratings`` without those of others in ``hidden`` studies."""
    if not hidden:
        return ratings
    others = ratings.model.objects.filter(assignment__study__in=hidden).exclude(assignment__reader=request.user)
    return ratings.exclude(pk__in=others.values("pk"))


def hidden_in(request: HttpRequest, export: Export) -> list[Study]:
    """Studies whose grades are kept from the person and stand in the export's files."""
    studies = Study.objects.all() if export.study_id is None else Study.objects.filter(pk=export.study_id)
    return hidden_studies(request, studies)
