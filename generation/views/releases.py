"""The page of releases: what is served, what was, and what may be; activating and rolling back."""

from django.contrib import messages
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from generation.certification import Standing, status
from generation.models import GeneratedImage, Release, ReleaseActivation, ReleaseComparison
from generation.release_figures import comparison
from generation.services import ReleaseError, activate_release, release_before, roll_back_release
from generation.views.access import staff_only

ACTIVATIONS_SHOWN = 50
COMPARISONS_SHOWN = 5


@staff_only
@require_safe
def releases(request: HttpRequest) -> HttpResponse:
    rows = list(
        Release.objects.annotate(
            num_accepted=Count("images", filter=Q(images__verdict=GeneratedImage.Verdict.ACCEPTED)),
            num_judged=Count("images", filter=Q(images__selector_score__isnull=False)),
        )
        .prefetch_related("certificates")  # `status` takes no query then
        .order_by("-created_at")
    )
    for row in rows:
        row.standings = _standings(row)
    active = next((row for row in rows if row.is_active), None)
    activations = ReleaseActivation.objects.select_related("release", "activated_by").order_by("-pk")
    comparisons = ReleaseComparison.objects.select_related("left__release", "right__release", "created_by")
    context = {
        "releases": rows,
        "active": active,
        "before": release_before() if active else None,
        "activations": activations[:ACTIVATIONS_SHOWN],
        "comparisons": comparisons[:COMPARISONS_SHOWN],
        "comparison": comparison(rows),
    }
    return render(request, "generation/releases.html", context)


def _standings(release: Release) -> list[tuple[str, Standing]]:
    """The kinds of image for which the release has a certificate that was not revoked, and whether it holds."""
    kinds = {row.kind: row.get_kind_display() for row in release.certificates.all() if row.is_valid}
    return [(name, status(release, kind)) for kind, name in kinds.items()]


@staff_only
@require_POST
def release_activate(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(Release, pk=pk)
    try:
        activate_release(release=row, by=request.user)
    except ReleaseError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{row} is active: the next jobs draw and filter with it.")
    return redirect("generation:releases")


@staff_only
@require_POST
def release_roll_back(request: HttpRequest) -> HttpResponse:
    """Activate what was active before."""
    try:
        row = roll_back_release(by=request.user)
    except ReleaseError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"Rolled back: {row} is active again, the next jobs draw and filter with it.")
    return redirect("generation:releases")
