"""Ratings in from files."""

from pathlib import Path

from django.db import transaction

from generation.importing import staged
from ratings.csv_schema import RatingsCSVError
from ratings.importing import BadRow, Pictures, RowReport, Showings, Store, read_rows
from ratings.importing.report import FINE, KNOWN, REFUSED
from ratings.models import Study
from ratings.services.errors import StudyError
from ratings.services.studies import create_study


def import_ratings(
    *,
    path: Path,
    study_name: str,
    is_simulated: bool = False,
    is_phantom: bool = False,
    skip_bad_rows: bool = False,
    report: Path | None = None,
    created_by=None,
) -> Study:
    """Store a ratings CSV or a tidy table, and copies of its images, as a new study.

    The whole file is checked first; RatingsCSVError lists the bad rows with their lines (a missing or unreadable
    image included), and then nothing is stored, unless ``skip_bad_rows``. ``report`` gets a CSV that says of every
    row what became of it: imported, known already (an earlier line says the same), refused and why, or not imported
    because others were refused.

    Five columns name no readers: the n-th rating of an image at a level goes to the n-th anonymous reader of that
    level, an account that nobody can sign in to. A tidy table has one such account per pseudonym, and brings kinds,
    occurrences, positions, times, remarks, states and protocol versions with it. An image whose bytes and prompt are
    known already is not stored twice and keeps its provenance. ``is_phantom`` marks new images of five columns as
    procedural phantoms, ``is_simulated`` the ratings as given by simulated experts. The copies hold nothing of the
    files but the picture (generation.deidentification).

    Raises FileNotFoundError, RatingsCSVError, or StudyError for a name that is taken or a file without rows.
    """
    if Study.objects.filter(name=study_name.strip()).exists():
        raise StudyError(f"There is a study named {study_name!r} already. Choose another name.")
    with staged() as staging, RowReport() as verdicts:
        pictures = Pictures(path.parent, staging, is_phantom=is_phantom)
        _check(path, pictures, verdicts)
        is_refused = verdicts.num_fine == 0 or (verdicts.num_refused > 0 and not skip_bad_rows)
        if is_refused:
            _refuse(path, verdicts, report)
        with pictures.published(), transaction.atomic():
            study = create_study(name=study_name, images=(), is_simulated=is_simulated, created_by=created_by)
            store = Store(study, is_simulated=is_simulated, created_by=created_by)
            for row, status in zip(read_rows(path), verdicts.statuses(), strict=True):
                if status == FINE:
                    store.add(row, pictures.image_of(row))
            store.finish()
        if report is not None:
            verdicts.write(report, is_stored=True)
    return study


def _check(path: Path, pictures: Pictures, verdicts: RowReport) -> None:
    """Find a verdict on every row."""
    with Showings() as showings:
        for row in read_rows(path):
            if isinstance(row, BadRow):
                verdicts.add(row.line, REFUSED, row.reason)
                continue
            try:
                pictures.check(row)
                verdicts.add(row.line, KNOWN if showings.is_known(row) else FINE)
            except ValueError as error:
                verdicts.add(row.line, REFUSED, str(error))


def _refuse(path: Path, verdicts: RowReport, report: Path | None) -> None:
    """Say why nothing is stored."""
    if report is not None:
        verdicts.write(report, is_stored=False)
    if verdicts.num_refused:
        raise RatingsCSVError(str(path), verdicts.faults)
    raise StudyError(f"{path} holds no ratings: there is nothing to import.")
