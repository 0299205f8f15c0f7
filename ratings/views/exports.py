"""Exports that were written, and the form that writes one."""

from django.contrib import messages
from django.http import FileResponse, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views import View

from medsyn.roles import StaffMixin
from ratings import services
from ratings.downloads import download
from ratings.forms import ExportFilter, ExportForm
from ratings.models import Export
from ratings.views.paging import ordering, paged


class ExportList(StaffMixin, View):
    """Exports that were written, and the form that writes one."""

    SORT_KEYS = {"created": "created_at", "rows": "row_count", "study": "study__name"}

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._show(request, ExportForm(initial={"study": request.GET.get("study")}))

    def post(self, request: HttpRequest) -> HttpResponse:
        form = ExportForm(request.POST)
        if form.is_valid():
            try:
                export = services.freeze_export(**form.cleaned_data, created_by=request.user)
            except services.StudyError as error:
                form.add_error(None, str(error))
            else:
                messages.success(request, f"Export {export.pk} is written: {export.row_count} ratings.")
                return redirect("ratings:exports")
        return self._show(request, form, status=422)

    def _show(self, request: HttpRequest, form: ExportForm, status: int = 200) -> HttpResponse:
        chosen = ExportFilter(request.GET, auto_id="filter_%s")
        exports = Export.objects.select_related("study", "created_by")
        exports = chosen.apply(exports) if chosen.is_valid() else exports.none()
        page = paged(exports.order_by(*ordering(request, self.SORT_KEYS, "-created")), request)
        context = {"form": form, "filter": chosen, "page": page, "any_export": Export.objects.exists()}
        return render(request, "ratings/exports.html", context, status=status)


class ExportFile(StaffMixin, View):
    """Downloads one file of an export."""

    def get(self, request: HttpRequest, pk: int, name: str) -> FileResponse | HttpResponse:
        export = get_object_or_404(Export, pk=pk)
        try:
            return download(export, name)
        except FileNotFoundError:
            messages.error(request, f"Export {pk} has no file {name!r} on the disk. Export again.")
            return redirect(reverse("ratings:exports"))
