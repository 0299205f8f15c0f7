"""The ratings themselves."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views import View

from medsyn.roles import StaffMixin
from ratings.forms import RatingFilter
from ratings.models import Rating
from ratings.views.paging import ordering, paged


class RatingList(StaffMixin, View):
    """All ratings."""

    SORT_KEYS = {
        "submitted": "submitted_at",
        "value": "value",
        "study": "assignment__study__name",
        "reader": "assignment__reader__username",
        "prompt": "assignment__image__prompt__text",
        "seconds": "active_ms",
    }

    def get(self, request: HttpRequest) -> HttpResponse:
        form = RatingFilter(request.GET)
        ratings = Rating.objects.select_related(
            "assignment__study", "assignment__reader", "assignment__image__prompt"
        )
        ratings = form.apply(ratings) if form.is_valid() else ratings.none()
        page = paged(ratings.order_by(*ordering(request, self.SORT_KEYS, "-submitted")), request)
        context = {"form": form, "page": page, "any_rating": Rating.objects.exists()}
        return render(request, "ratings/data.html", context)
