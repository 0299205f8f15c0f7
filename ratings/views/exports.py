"""Exports that were written, and the form that writes one."""

from django.contrib import messages
from django.http import FileResponse, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views import View

from medsyn.roles import OwnerMixin, is_admin
from ratings import services
from ratings.downloads import download
from ratings.export_api import ExportThrottle
from ratings.forms import ExportFilter, ExportForm
from ratings.hidden_grades import hidden_in
from ratings.models import Export, Study
from ratings.views.access import ask_first
from ratings.views.paging import ordering, paged

_TOO_MANY = "Too many exports in an hour. Take one that is written already, or wait."


class ExportList(OwnerMixin, View):
    """The exports of the studies that the person runs."""

    SORT_KEYS = {"created": "created_at", "rows": "row_count", "study": "study__name"}

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._show(request, ExportForm(user=request.user, initial={"study": request.GET.get("study")}))

    def post(self, request: HttpRequest) -> HttpResponse:
        form = ExportForm(request.POST, user=request.user)
        if form.is_valid():
            if not ExportThrottle().allow_request(request, self):
                form.add_error(None, _TOO_MANY)
                return self._show(request, form, status=429)
            try:
                export = form.save()
            except services.StudyError as error:
                form.add_error(None, str(error))
            else:
                messages.success(request, f"{export} are written.")
                return redirect("ratings:exports")
        return self._show(request, form, status=422)

    def _show(self, request: HttpRequest, form: ExportForm, status: int = 200) -> HttpResponse:
        studies = Study.objects.managed_by(request.user)
        chosen = ExportFilter(request.GET, studies=studies, auto_id="filter_%s")
        managed = Export.objects.managed_by(request.user)
        exports = managed.select_related("study", "created_by", "rerun_of")
        exports = chosen.apply(exports) if chosen.is_valid() else exports.none()
        page = paged(exports.order_by(*ordering(request, self.SORT_KEYS, "-created")), request)
        context = {"form": form, "filter": chosen, "page": page, "any_export": managed.exists()}
        return render(request, "ratings/exports.html", context | {"is_admin": is_admin(request.user)}, status=status)


class ExportRerun(OwnerMixin, View):
    """Writes an export again and says whether the bytes are the same."""

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        export = get_object_or_404(Export.objects.managed_by(request.user), pk=pk)
        if not ExportThrottle().allow_request(request, self):
            messages.error(request, _TOO_MANY)
            return redirect("ratings:exports")
        try:
            again = services.rerun_export(export=export, created_by=request.user)
        except services.StudyError as error:
            messages.error(request, str(error))
        else:
            self._tell(request, again)
        return redirect("ratings:exports")

    @staticmethod
    def _tell(request: HttpRequest, again: Export) -> None:
        before = again.rerun_of
        if not again.differing_files:
            messages.success(request, f"Export {again.pk} has the same bytes as export {before.pk}, file by file.")
            return
        text = f"Export {again.pk} differs from export {before.pk} in: {', '.join(again.differing_files)}."
        if again.code_version != before.code_version:
            text += f" The code that writes exports has changed since ({before.code_version}, {again.code_version})."
        messages.error(request, text)


class ExportFile(OwnerMixin, View):
    """Downloads one file of an export; who has images of its studies left to rate is asked first."""

    def get(self, request: HttpRequest, pk: int, name: str) -> FileResponse | HttpResponse:
        export = get_object_or_404(Export.objects.managed_by(request.user), pk=pk)
        if hidden := hidden_in(request, export):
            return ask_first(request, hidden)
        try:
            return download(export, name)
        except FileNotFoundError:
            messages.error(request, f"Export {pk} has no file {name!r} on the disk. Export again.")
            return redirect(reverse("ratings:exports"))
