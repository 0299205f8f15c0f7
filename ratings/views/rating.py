"""The rating page."""

from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views import View

from ratings import services
from ratings.answer_codes import CANNOT_JUDGE_REASONS, MAX_COMMENT
from ratings.forms import DEFECT_KEYS
from ratings.models import NO_PROGRESS, Grade, Study

BREAK_EVERY = 50  # answers after which the page offers a break; a reader can switch that off
_ANY_PLACE = UUID(int=0)  # stands in the address where the script puts the place that is rated


class Rate(View):
    """The rating page: everything on it comes by the API, one image after the other."""

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        study = get_object_or_404(Study.objects.read_by(request.user), public_id=study_id)
        if not study.is_open:
            messages.info(request, f"{study.name} is closed: it takes no ratings at the moment.")
            return redirect("ratings:studies")
        protocol = study.protocol
        context = {
            "study": study,
            "progress": services.progress_of([study], request.user).get(study.pk, NO_PROGRESS),
            "is_pool": protocol.overlap_target is not None,
            "placeholder": _ANY_PLACE,
            "grades": [(grade, protocol.scale_texts.get(str(grade.value), "")) for grade in Grade],
            "defects": [*zip(DEFECT_KEYS, protocol.defects, strict=False)],  # a key, and (code, label)
            "reasons": [*enumerate(CANNOT_JUDGE_REASONS.items(), start=1)],
            "max_comment": MAX_COMMENT,
            "gap_ms": settings.RATING_GAP_MS,
            "break_every": BREAK_EVERY,
        }
        return render(request, "ratings/rate.html", context)
