"""Pages of comparisons: two releases on the same prompts and seeds, side by side."""

from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.cache import patch_cache_control
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from generation.comparisons import (
    ORDERS,
    cancel_comparison,
    judgements,
    name_of,
    ordered_pairs,
    retry_comparison,
    start_comparison,
)
from generation.forms import ComparisonForm
from generation.models import ReleaseComparison
from generation.parameters import ParameterError
from generation.views.access import staff_only

COMPARISONS_PER_PAGE = 20
PAIRS_PER_PAGE = 24


def _rows():
    return ReleaseComparison.objects.select_related("left__release", "right__release", "created_by")


@staff_only
@require_http_methods(["GET", "HEAD", "POST"])
def comparisons(request: HttpRequest) -> HttpResponse:
    """The form, and the comparisons made so far below it."""
    if request.method == "POST":
        form = ComparisonForm(request.POST)
        if form.is_valid():
            try:
                return redirect(start_comparison(user=request.user, **form.service_arguments()))
            except ParameterError as error:
                form.take_error(error)
    else:
        form = ComparisonForm(initial=ComparisonForm.first_choice(request.GET))
    page = Paginator(_rows(), COMPARISONS_PER_PAGE).get_page(request.GET.get("page"))
    context = {"form": form, "page": page}
    return render(request, "generation/comparisons.html", context, status=422 if form.errors else 200)


@staff_only
@require_safe
def comparison(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(_rows(), pk=pk)
    made = judgements(row)
    judgement = next(
        (one for one in made if str(one.judge.pk) == request.GET.get("judge")), made[0] if made else None
    )
    order = request.GET.get("order", "")
    pairs = ordered_pairs(row, judgement, order if order in ORDERS else "")
    context: dict[str, Any] = {
        "comparison": row,
        "names": [name_of(job) for job in row.sides],
        "jobs": row.sides,
        "judgements": made,
        "judgement": judgement,
        "orders": ORDERS,
        "order": order,
        "page": Paginator(pairs, PAIRS_PER_PAGE).get_page(request.GET.get("page")),
        "has_phantoms": any(image.is_phantom for pair in pairs[:1] for image in pair.images),
    }
    return render(request, "generation/comparison.html", context)


@staff_only
@require_safe
def comparison_progress(request: HttpRequest, pk: int) -> JsonResponse:
    response = JsonResponse(get_object_or_404(ReleaseComparison, pk=pk).as_progress())
    patch_cache_control(response, no_store=True)
    return response


@staff_only
@require_POST
def comparison_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(_rows(), pk=pk)
    if row.is_finished:
        messages.warning(request, f"The comparison had ended already ({row.get_state_display().lower()}).")
    else:
        cancel_comparison(comparison=row)
        messages.success(request, "The comparison ends now. Images and scores made so far stay.")
    return redirect(row)


@staff_only
@require_POST
def comparison_retry(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(ReleaseComparison, pk=pk)
    try:
        retry_comparison(comparison=row)
    except ParameterError as error:
        messages.error(request, error.message)
    return redirect(row)
