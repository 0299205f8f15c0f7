"""A study's protocol: what holds, what held before, and its revision."""

from dataclasses import dataclass

from django.contrib import messages
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views import View

from medsyn.roles import OwnerMixin
from ratings import services
from ratings.forms import DEFECT_KEYS, RevisionForm
from ratings.models import Protocol, Rating, Study
from ratings.protocol_text import Change, changes_between, lines_of
from ratings.views.access import managed_study


@dataclass(frozen=True)
class Version:
    """A version of a protocol beside the one before it."""

    protocol: Protocol
    num_ratings: int  # given under it, and standing
    changes: list[Change]  # against the version before; none for the first


def _versions(study: Study) -> list[Version]:
    """The newest first, in three queries."""
    protocols = list(study.protocols.select_related("created_by").prefetch_related("anchors__image"))
    standing = Rating.objects.answered().without_training_round().filter(assignment__study=study).order_by()
    given = dict(standing.values_list("protocol_version").annotate(Count("pk")))
    before = [None, *protocols[:-1]]
    return [
        Version(each, given.get(each.version, 0), changes_between(old, each) if old else [])
        for old, each in zip(before, protocols, strict=True)
    ][::-1]


class StudyProtocol(OwnerMixin, View):
    """How a study is read, now and before; and the form that changes it."""

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        study = managed_study(request, study_id)
        return self._show(request, study, self._form(study))

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        study = managed_study(request, study_id)
        form = self._form(study, request.POST)
        if form.is_valid():
            try:
                self._revise(request, study, form)
            except services.StudyError as error:
                form.add_error(None, str(error))
            else:
                return redirect("ratings:study-protocol", study.public_id)
        return self._show(request, study, form, status=422)

    @staticmethod
    def _form(study: Study, data=None) -> RevisionForm:
        return RevisionForm(data, protocol=study.protocol, is_frozen=study.frozen_at is not None)

    @staticmethod
    def _revise(request: HttpRequest, study: Study, form: RevisionForm) -> None:
        changes = form.changes()
        if not changes:
            messages.info(request, "Nothing is otherwise than before: the protocol stays as it is.")
            return
        was_frozen = study.frozen_at is not None  # a new version begins unfrozen
        protocol = services.revise_protocol(
            study=study, created_by=request.user, reason=form.cleaned_data["reason"], **changes
        )
        became = f"version {protocol.version} holds" if was_frozen else "changed; nobody had rated under it yet"
        messages.success(request, f"The protocol of {study.name}: {became}.")

    @staticmethod
    def _show(request: HttpRequest, study: Study, form: RevisionForm, status: int = 200) -> HttpResponse:
        current, *earlier = _versions(study)
        context = {
            "study": study,
            "current": current,
            "lines": lines_of(current.protocol),
            "earlier": earlier,
            "form": form,
            "keys": DEFECT_KEYS,
        }
        return render(request, "ratings/study_protocol.html", context, status=status)
