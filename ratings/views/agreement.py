"""How far the readers of a study agree, and its tables as files."""

from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.views import View

from medsyn.roles import OwnerMixin
from ratings.dashboard import figures_of
from ratings.downloads import image_aggregate, table_file
from ratings.hidden_grades import is_hidden
from ratings.report_page import agreement_page
from ratings.report_tables import PROGRESS_TITLES, progress_tables, report_tables
from ratings.study_report import report_of
from ratings.views.access import ask_first, managed_study


class StudyAgreement(OwnerMixin, View):
    """How far the readers agree, and what each of them does. Whoever still has images of the study to
    rate is asked first: who knows the others' grades is blind no more."""

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        study = managed_study(request, study_id)
        if is_hidden(request, study):
            return render(request, "ratings/study_agreement.html", {"study": study, "is_blind": True})
        report = report_of(study)
        context = {"study": study, "report": report}
        if report is not None:
            titles = [*PROGRESS_TITLES.items(), *((table.name, table.title) for table in report_tables(report))]
            context |= {"table_titles": titles, **agreement_page(study, report)}
        return render(request, "ratings/study_agreement.html", context)


class StudyTable(OwnerMixin, View):
    """Downloads a table of the study's pages."""

    def get(self, request: HttpRequest, study_id, table: str) -> HttpResponse:
        study = managed_study(request, study_id)
        if is_hidden(request, study):
            return ask_first(request, [study])
        report = report_of(study)
        tables = progress_tables(figures_of(study)) + (report_tables(report) if report else ())
        try:
            return table_file(study, tables, table)
        except FileNotFoundError as error:
            known = ", ".join(each.name for each in tables)
            raise Http404(f"The study has no table {table!r}; it has {known}, as .csv or .json.") from error


class StudyImageGrades(OwnerMixin, View):
    """Downloads what all readers together say of each image."""

    def get(self, request: HttpRequest, study_id) -> HttpResponse | StreamingHttpResponse:
        study = managed_study(request, study_id)
        return ask_first(request, [study]) if is_hidden(request, study) else image_aggregate(study)
