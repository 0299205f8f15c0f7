"""Files that leave the server for its owners: the files of an export, and a study's figures."""

import csv
from collections.abc import Iterable, Iterator, Sequence

from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse

from ratings.export.images import IMAGE_COLUMNS, current_image_rows
from ratings.models import Export, Study
from ratings.report_tables import ReportTable

_CSV = "text/csv; charset=utf-8"


def download(export: Export, name: str) -> FileResponse:
    """One of an export's files. Raises FileNotFoundError for another name or a file that is gone."""
    path = export.path_of(name)
    return FileResponse(
        path.open("rb"),
        as_attachment=True,
        filename=f"medsyn_export_{export.pk}_{path.name}",
        content_type=_CSV,
    )


def table_file(study: Study, tables: Sequence[ReportTable], name: str) -> HttpResponse:
    """One of the tables as "<name>.csv" or "<name>.json", or all of them as "all.json". Raises FileNotFoundError for
    another name."""
    by_name = {table.name: table for table in tables}
    stem, _, suffix = name.rpartition(".")
    if name == "all.json":
        response: HttpResponse = JsonResponse({table.name: table.as_records() for table in tables})
    elif stem in by_name and suffix == "json":
        response = JsonResponse(by_name[stem].as_records(), safe=False)
    elif stem in by_name and suffix == "csv":
        response = HttpResponse(by_name[stem].as_csv(), content_type=_CSV)
    else:
        raise FileNotFoundError(name)
    response["Content-Disposition"] = _attachment(study, name)
    return response


def _attachment(study: Study, name: str) -> str:
    return f'attachment; filename="medsyn_study_{study.public_id.hex[:8]}_{name}"'


def image_aggregate(study: Study) -> StreamingHttpResponse:
    """CSV of IMAGE_COLUMNS as the ratings stand now, row by row; the recorded file is services.freeze_images."""
    response = StreamingHttpResponse(_lines(IMAGE_COLUMNS, current_image_rows(study)), content_type=_CSV)
    response["Content-Disposition"] = _attachment(study, "images.csv")
    return response


class _Line:
    """What csv.writer writes to: hands the line back."""

    def write(self, text: str) -> str:
        return text


def _lines(header: Iterable[str], rows: Iterable[tuple]) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield writer.writerow(header)
    for row in rows:
        yield writer.writerow(row)
