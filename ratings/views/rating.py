"""The rating page."""

from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views import View

from ratings import services
from ratings.answer_codes import CANNOT_JUDGE_REASONS, DEFECTS, MAX_COMMENT
from ratings.models import Study

_ANY_PLACE = UUID(int=0)  # stands in the address where the script puts the place that is rated
_NOTHING_YET = {"done": 0, "total": 0, "mean_active_ms": None}


class Rate(View):
    """The rating page: everything on it comes by the API, one image after the other."""

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        study = get_object_or_404(Study.objects.read_by(request.user), public_id=study_id)
        if not study.is_open:
            messages.info(request, f"{study.name} is closed: it takes no ratings at the moment.")
            return redirect("ratings:studies")
        progress = services.progress_of([study], request.user).get(study.pk, _NOTHING_YET)
        context = {
            "study": study,
            "progress": progress,
            "placeholder": _ANY_PLACE,
            "defects": [*zip("qwertyuo", DEFECTS.items(), strict=False)],  # a key, and (code, label)
            "reasons": [*enumerate(CANNOT_JUDGE_REASONS.items(), start=1)],
            "max_comment": MAX_COMMENT,
            "gap_ms": settings.RATING_GAP_MS,
        }
        return render(request, "ratings/rate.html", context)
