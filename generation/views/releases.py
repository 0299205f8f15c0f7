"""The page of releases: what is served, what was, and what may be."""

from django.contrib import messages
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from generation.models import GeneratedImage, Release
from generation.release_figures import comparison
from generation.services import ReleaseError, activate_release
from generation.views.access import staff_only


@staff_only
@require_safe
def releases(request: HttpRequest) -> HttpResponse:
    rows = list(
        Release.objects.annotate(
            num_accepted=Count("images", filter=Q(images__verdict=GeneratedImage.Verdict.ACCEPTED)),
            num_judged=Count("images", filter=~Q(images__verdict=GeneratedImage.Verdict.UNFILTERED)),
        ).order_by("-created_at")
    )
    active = next((row for row in rows if row.is_active), None)
    context = {"releases": rows, "active": active, "comparison": comparison(rows)}
    return render(request, "generation/releases.html", context)


@staff_only
@require_POST
def release_activate(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(Release, pk=pk)
    try:
        activate_release(release=row)
    except ReleaseError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{row} is active: the next jobs draw and filter with it.")
    return redirect("generation:releases")
