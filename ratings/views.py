"""Pages of studies and ratings. Readers see their own studies and the rating page; the rest is for administrators
and does not exist for others."""

from collections.abc import Sequence
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views import View

from medsyn.roles import StaffMixin
from ratings import services
from ratings.answer_codes import CANNOT_JUDGE_REASONS, DEFECTS, MAX_COMMENT
from ratings.dashboard import figures_of
from ratings.downloads import download, image_aggregate, table_file
from ratings.forms import (
    ExportFilter,
    ExportForm,
    ImageChoiceForm,
    NewStudyForm,
    RatingFilter,
    ReaderForm,
    StudyFilter,
)
from ratings.models import Export, Rating, Study
from ratings.report_page import agreement_page
from ratings.report_tables import PROGRESS_TITLES, progress_tables, report_tables
from ratings.study_report import report_of

ROWS_PER_PAGE = 25
_ANY_PLACE = UUID(int=0)  # stands in the address where the script puts the place that is rated
_NOTHING_YET = {"done": 0, "total": 0, "mean_active_ms": None}


def paged(rows: QuerySet | Sequence, request: HttpRequest) -> Page:
    """The page that ?page= names; the nearest one there is for any other text."""
    return Paginator(rows, ROWS_PER_PAGE).get_page(request.GET.get("page"))


def ordering(request: HttpRequest, keys: dict[str, str], default: str) -> tuple[str, str]:
    """Database ordering for ?sort=key or ?sort=-key, newest first among equals; unknown keys mean ``default``."""
    key = request.GET.get("sort", "")
    if key.lstrip("-") not in keys:
        key = default
    direction = "-" if key.startswith("-") else ""
    return f"{direction}{keys[key.lstrip('-')]}", "-pk"


class StudyList(View):
    """A reader's studies with their progress; for administrators all studies."""

    SORT_KEYS = {"name": "name", "created": "created_at", "state": "is_open"}

    def get(self, request: HttpRequest) -> HttpResponse:
        own = list(Study.objects.read_by(request.user).filter(is_open=True))
        progress = services.progress_of(own, request.user)
        context = {"own": [self._card(study, progress.get(study.pk, _NOTHING_YET)) for study in own]}
        if not request.user.is_staff:
            return render(request, "ratings/studies.html", context)
        form = StudyFilter(request.GET)
        studies = form.apply(Study.objects.all()) if form.is_valid() else Study.objects.none()
        page = paged(studies.order_by(*ordering(request, self.SORT_KEYS, "-created")), request)
        progress = services.progress_of(page.object_list)
        rows = [(study, progress.get(study.pk, _NOTHING_YET)) for study in page]
        return render(
            request,
            "ratings/studies.html",
            {**context, "form": form, "page": page, "rows": rows, "any_study": Study.objects.exists()},
        )

    @staticmethod
    def _card(study: Study, progress: dict) -> dict:
        left = progress["total"] - progress["done"]
        seconds = (progress["mean_active_ms"] or 0) / 1000 * left
        return {"study": study, **progress, "left": left, "minutes_left": round(seconds / 60) or None}


class StudyCreate(StaffMixin, View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return render(request, "ratings/study_new.html", {"form": NewStudyForm()})

    def post(self, request: HttpRequest) -> HttpResponse:
        form = NewStudyForm(request.POST)
        if not form.is_valid():
            return render(request, "ratings/study_new.html", {"form": form}, status=422)
        study = services.create_study(
            name=form.cleaned_data["name"],
            description=form.cleaned_data["description"],
            images=form.images(),
            readers=form.readers(),
            created_by=request.user,
        )
        messages.success(request, f"{study.name} is made: {study.study_images.count()} images.")
        return redirect(study)


class StudyDetail(View):
    """An administrator's view of a study; its readers are sent on to the rating page."""

    SORT_KEYS = ("reader", "expert_level", "done", "seconds_left", "seconds_per_image", "last_at")

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        if not request.user.is_staff:
            study = get_object_or_404(Study.objects.read_by(request.user), public_id=study_id)
            return redirect("ratings:rate", study.public_id)
        study = get_object_or_404(Study, public_id=study_id)
        return self.show(request, study, ReaderForm(study=study))

    @classmethod
    def show(cls, request: HttpRequest, study: Study, form: ReaderForm, status: int = 200) -> HttpResponse:
        figures = figures_of(study)
        key = request.GET.get("sort", "")
        readers = list(figures.readers)
        if key.lstrip("-") in cls.SORT_KEYS:
            name = key.lstrip("-")
            known = [row for row in readers if getattr(row, name) is not None]
            known.sort(key=lambda row: getattr(row, name), reverse=key.startswith("-"))
            readers = known + [row for row in readers if getattr(row, name) is None]
        context = {
            "study": study,
            "figures": figures,
            "page": paged(readers, request),
            "form": form,
            "reads_it": study.memberships.filter(reader=request.user).exists(),
            "exports": study.exports.all()[:3],
        }
        return render(request, "ratings/study.html", context, status=status)


class StudyReaders(StaffMixin, View):
    """Adds a reader."""

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        study = get_object_or_404(Study, public_id=study_id)
        form = ReaderForm(request.POST, study=study)
        if not form.is_valid():
            return StudyDetail.show(request, study, form, status=422)
        reader = form.cleaned_data["reader"]
        places = services.enrol_reader(study=study, **form.cleaned_data)
        messages.success(request, f"{reader.get_username()} reads {study.name}: {len(places)} images.")
        return redirect(study)


class StudyImages(StaffMixin, View):
    """Adds images."""

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        study = get_object_or_404(Study, public_id=study_id)
        return render(request, "ratings/study_images.html", {"study": study, "form": ImageChoiceForm()})

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        study = get_object_or_404(Study, public_id=study_id)
        form = ImageChoiceForm(request.POST)
        if not form.is_valid():
            return render(request, "ratings/study_images.html", {"study": study, "form": form}, status=422)
        added = services.add_images(study=study, images=form.images())
        if added:
            messages.success(request, f"{added} images added behind every reader's list.")
        else:
            messages.info(request, "The study has all of these images already: nothing was added.")
        return redirect(study)


class StudyState(StaffMixin, View):
    """Opens or closes a study."""

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        study = get_object_or_404(Study, public_id=study_id)
        study.is_open = request.POST.get("open") == "1"
        study.save(update_fields=["is_open"])
        messages.success(request, f"{study.name} is {'open: readers can rate' if study.is_open else 'closed'}.")
        return redirect(study)


class StudyAgreement(StaffMixin, View):
    """How far the readers agree, and what each of them does. An administrator who still has images of the study to
    rate is asked first: who knows the others' grades is blind no more."""

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        study = get_object_or_404(Study, public_id=study_id)
        if (
            "show" not in request.GET
            and study.is_open
            and study.assignments.filter(reader=request.user).open().exists()
        ):
            return render(request, "ratings/study_agreement.html", {"study": study, "is_blind": True})
        report = report_of(study)
        context = {"study": study, "report": report}
        if report is not None:
            titles = [*PROGRESS_TITLES.items(), *((table.name, table.title) for table in report_tables(report))]
            context |= {"table_titles": titles, **agreement_page(study, report)}
        return render(request, "ratings/study_agreement.html", context)


class StudyTable(StaffMixin, View):
    """Downloads a table of the study's pages."""

    def get(self, request: HttpRequest, study_id, table: str) -> HttpResponse:
        study = get_object_or_404(Study, public_id=study_id)
        report = report_of(study)
        tables = progress_tables(figures_of(study)) + (report_tables(report) if report else ())
        try:
            return table_file(study, tables, table)
        except FileNotFoundError as error:
            known = ", ".join(each.name for each in tables)
            raise Http404(f"The study has no table {table!r}; it has {known}, as .csv or .json.") from error


class StudyImageGrades(StaffMixin, View):
    """Downloads what all readers together say of each image."""

    def get(self, request: HttpRequest, study_id) -> StreamingHttpResponse:
        return image_aggregate(get_object_or_404(Study, public_id=study_id))


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
