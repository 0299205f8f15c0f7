"""Files that leave the server for its owners: the files of an export, and a study's figures."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse

from medsyn.modalities import kind_from_name
from ratings.export import FILE_NAMES, ExportFiles, formula_safe
from ratings.models import Export, Grade, Study
from ratings.report_tables import ReportTable
from ratings.study_report import ImagePosterior, image_posteriors

_CSV = "text/csv; charset=utf-8"
_CHUNK_ROWS = 500


def download(export: Export, name: str) -> FileResponse:
    """One of an export's FILE_NAMES. Raises FileNotFoundError for another name or a file that is gone."""
    if name not in FILE_NAMES:
        raise FileNotFoundError(name)
    path = getattr(ExportFiles.beside(export.path), name)
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


# Column and what it means; the rows come from _aggregate_rows in this order.
AGGREGATE_COLUMNS = {
    "image_uuid": "Identity of the image, as in the tidy table",
    "image_sha256": "sha256 of the image file's bytes",
    "kind": "Kind of image",
    "prompt": "What the image was to show",
    "source": "generated or imported",
    "phantom": "1: a procedural phantom, not a medical image",
    "release": "Release that made the image; empty: none",
    "seed": "Seed of the image; empty: imported",
    "n": "Ratings of first showings, outside the training round; simulated experts only in a simulated study",
    "poor": "of these: 1",
    "acceptable": "of these: 2",
    "excellent": "of these: 3",
    "mean": "Mean grade, 1 to 3; empty: not rated",
    "majority": "The grade that most gave; empty: not rated, or no single grade has most",
    "p_poor": "Probability of each grade after Dawid and Skene with a prior by expertise; empty: not rated",
    "p_acceptable": "the same",
    "p_excellent": "the same",
}


def image_aggregate(study: Study) -> StreamingHttpResponse:
    """CSV of AGGREGATE_COLUMNS, one row per image of the study in the order of their making, row by row."""
    response = StreamingHttpResponse(_aggregate_rows(study), content_type=_CSV)
    response["Content-Disposition"] = _attachment(study, "images.csv")
    return response


class _Line:
    """What csv.writer writes to: hands the line back."""

    def write(self, text: str) -> str:
        return text


def _aggregate_rows(study: Study) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield writer.writerow(AGGREGATE_COLUMNS)
    posteriors = image_posteriors(study)
    images = study.images.order_by("pk").values_list(
        "pk", "public_id", "sha256", "prompt__kind", "prompt__text", "source", "is_phantom", "release__digest", "seed"
    )
    for key, public_id, sha256, kind, prompt, source, is_phantom, release, seed in images.iterator(_CHUNK_ROWS):
        known = (public_id, sha256, kind_from_name(kind).prefix, formula_safe(prompt), source, int(is_phantom))
        yield writer.writerow((*known, release or "", "" if seed is None else seed, *_grades_of(posteriors.get(key))))


def _grades_of(rated: ImagePosterior | None) -> tuple[Any, ...]:
    """The cells from "n" on."""
    if rated is None:
        return (0, *(0 for _ in Grade), *("" for _ in range(2 + len(Grade))))
    number, most = sum(rated.counts), max(rated.counts)
    mean = sum(grade * count for grade, count in zip(Grade.values, rated.counts, strict=True)) / number
    majority = Grade.values[rated.counts.index(most)] if rated.counts.count(most) == 1 else ""
    return (number, *rated.counts, f"{mean:.6f}", majority, *(f"{share:.6f}" for share in rated.posterior))
