"""Pages of comparisons: two releases on the same prompts and seeds, side by side."""

from functools import partial
from typing import Any

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
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
from generation.views.running import do_or_say_why, end, progress_reply

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
    return progress_reply(get_object_or_404(ReleaseComparison, pk=pk))


@staff_only
@require_POST
def comparison_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(_rows(), pk=pk)
    cancel = partial(cancel_comparison, comparison=row)
    return end(request, row, cancel, name="comparison", kept="Images and scores made so far stay.")


@staff_only
@require_POST
def comparison_retry(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(ReleaseComparison, pk=pk)
    do_or_say_why(request, partial(retry_comparison, comparison=row))
    return redirect(row)
