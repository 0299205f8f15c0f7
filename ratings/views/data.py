"""The ratings themselves: all of them, and what happened to each."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views import View

from medsyn.roles import OwnerMixin
from ratings import services
from ratings.forms import RatingFilter, ReasonForm
from ratings.hidden_grades import hidden_studies, is_hidden, told
from ratings.models import Rating, Study
from ratings.views.access import ask_first
from ratings.views.paging import ordering, paged


class RatingList(OwnerMixin, View):
    """Ratings of the studies that the person runs."""

    SORT_KEYS = {
        "submitted": "submitted_at",
        "value": "value",
        "study": "assignment__study__name",
        "reader": "assignment__reader__username",
        "prompt": "assignment__image__prompt__text",
        "seconds": "active_ms",
    }

    def get(self, request: HttpRequest) -> HttpResponse:
        studies = Study.objects.managed_by(request.user)
        form = RatingFilter(request.GET, studies=studies)
        managed = Rating.objects.filter(assignment__study__in=studies)
        hidden = hidden_studies(request, studies)
        ratings = told(managed, request, hidden).select_related(
            "assignment__study", "assignment__reader", "assignment__image__prompt"
        )
        ratings = form.apply(ratings) if form.is_valid() else ratings.none()
        page = paged(ratings.order_by(*ordering(request, self.SORT_KEYS, "-submitted")), request)
        context = {"form": form, "page": page, "any_rating": managed.exists(), "hidden": hidden}
        return render(request, "ratings/data.html", context)


def _managed_rating(request: HttpRequest, pk: int) -> Rating:
    ratings = Rating.objects.select_related(
        "assignment__study", "assignment__reader", "assignment__image__prompt", "assignment__image"
    )
    studies = Study.objects.managed_by(request.user)
    return get_object_or_404(ratings.filter(assignment__study__in=studies), pk=pk)


def _is_kept_from(request: HttpRequest, rating: Rating) -> bool:
    """Whether it is somebody else's rating, of a study whose grades are kept from the person."""
    return rating.assignment.reader != request.user and is_hidden(request, rating.assignment.study)


def _show_rating(request: HttpRequest, rating: Rating, form: ReasonForm, status: int = 200) -> HttpResponse:
    versions = rating.assignment.study.protocols.values_list("defects", flat=True)
    labels = {code: label for defects in versions for code, label in defects}
    context = {
        "rating": rating,
        "place": rating.assignment,
        "study": rating.assignment.study,
        "events": rating.events.select_related("actor").order_by("-revision"),
        "defects": [labels.get(code, code) for code in rating.defects],
        "form": form,
    }
    return render(request, "ratings/rating.html", context, status=status)


class RatingDetail(OwnerMixin, View):
    """One rating, and everything that happened to it."""

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        rating = _managed_rating(request, pk)
        if _is_kept_from(request, rating):
            return ask_first(request, [rating.assignment.study])
        return _show_rating(request, rating, ReasonForm())


class _RatingCounts(OwnerMixin, View):
    """Whether a rating counts: changed with a reason, the rating and its history stay."""

    done: str

    def change(self, **given) -> None:
        raise NotImplementedError

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        rating = _managed_rating(request, pk)
        if _is_kept_from(request, rating):
            return redirect("ratings:rating", pk)  # which asks
        form = ReasonForm(request.POST)
        if form.is_valid():
            try:
                self.change(rating=rating, actor=request.user, reason=form.cleaned_data["reason"])
            except services.StudyError as error:
                form.add_error(None, str(error))
            else:
                messages.success(request, self.done)
                return redirect("ratings:rating", pk)
        return _show_rating(request, rating, form, status=422)


class RatingVoid(_RatingCounts):
    """Declares a rating void."""

    done = "The rating is void: it counts nowhere, and stays on record."

    def change(self, **given) -> None:
        services.void_rating(**given)


class RatingRestore(_RatingCounts):
    """Lets a void rating count again."""

    done = "The rating counts again."

    def change(self, **given) -> None:
        services.restore_rating(**given)
