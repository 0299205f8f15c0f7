"""Pages on which images are chosen for a study, for whoever runs it; for everybody else they do not exist."""

from collections import Counter
from uuid import UUID

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views import View

from generation.views.running import progress_reply
from medsyn.roles import OwnerMixin
from ratings.hidden_grades import is_hidden
from ratings.models import Study
from ratings.services import StudyError
from ratings.views import paged
from ratings.views.access import managed_study
from training.models import ReadingBatch, ReadingPick
from training.reading.forms import ReadingBatchForm
from training.reading.services import plan_batch


def _batch(request: HttpRequest, study_id: UUID, pk: int) -> ReadingBatch:
    batches = ReadingBatch.objects.managed_by(request.user).filter(study__public_id=study_id)
    return get_object_or_404(batches.select_related("study", "release", "created_by"), pk=pk)


class ReadingBatches(OwnerMixin, View):
    """Asks for the next images of a study; those asked for so far."""

    def get(self, request: HttpRequest, study_id: UUID) -> HttpResponse:
        study = managed_study(request, study_id)
        return self._show(request, study, ReadingBatchForm(study=study))

    def post(self, request: HttpRequest, study_id: UUID) -> HttpResponse:
        study = managed_study(request, study_id)
        form = ReadingBatchForm(request.POST, study=study)
        if form.is_valid():
            try:
                return redirect(plan_batch(study=study, user=request.user, **form.service_arguments()))
            except StudyError as error:
                form.add_error(None, str(error))
        return self._show(request, study, form, status=422)

    @staticmethod
    def _show(request: HttpRequest, study: Study, form: ReadingBatchForm, status: int = 200) -> HttpResponse:
        batches = study.reading_batches.select_related("release", "created_by")
        context = {"study": study, "form": form, "page": paged(batches, request)}
        return render(request, "training/reading_batches.html", context, status=status)


class ReadingBatchDetail(OwnerMixin, View):
    """What was chosen and why. Who still has some of the study to rate is asked before seeing it."""

    def get(self, request: HttpRequest, study_id: UUID, pk: int) -> HttpResponse:
        batch = _batch(request, study_id, pk)
        counts = Counter(batch.picks.order_by().values_list("reason", flat=True))
        context = {
            "batch": batch,
            "study": batch.study,
            "jobs": batch.jobs.order_by("pk"),
            "counts": [(label, counts[reason]) for reason, label in ReadingPick.Reason.choices if counts[reason]],
            "pool_size": len(batch.pool),
            "is_blind": is_hidden(request, batch.study),
            "page": paged(batch.picks.select_related("image__prompt"), request),
        }
        return render(request, "training/reading_batch.html", context)


class ReadingBatchProgress(OwnerMixin, View):
    """How far a batch is, as JSON."""

    def get(self, request: HttpRequest, study_id: UUID, pk: int) -> JsonResponse:
        return progress_reply(_batch(request, study_id, pk))


class ReadingBatchCancel(OwnerMixin, View):
    """Ends a choice that is not made yet."""

    def post(self, request: HttpRequest, study_id: UUID, pk: int) -> HttpResponse:
        batch = _batch(request, study_id, pk)
        if batch.is_finished:
            messages.info(request, "The batch has ended already.")
        batch.request_cancel()
        return redirect(batch)
