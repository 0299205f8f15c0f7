"""Ratings in from files."""

from pathlib import Path

from django.db import transaction

from generation.importing import staged
from ratings import importing
from ratings.csv_schema import read_ratings_file
from ratings.models import Study
from ratings.services.errors import StudyError
from ratings.services.studies import create_study


def import_ratings(
    *, path: Path, study_name: str, is_simulated: bool = False, is_phantom: bool = False, created_by=None
) -> Study:
    """Store a ratings CSV and copies of its images as a new study.

    The whole file is checked first; RatingsCSVError lists every bad row with its line (a missing or unreadable
    image included), and then nothing is stored. The file names no readers: the n-th rating of an image at a level
    goes to the n-th anonymous reader of that level, an account that nobody can sign in to. An image whose bytes and
    prompt are known already is not stored twice and keeps its provenance. ``is_phantom`` marks new images as
    procedural phantoms, ``is_simulated`` the ratings as given by simulated experts. The copies hold nothing of the
    files but the picture (generation.deidentification).

    Raises FileNotFoundError, RatingsCSVError, or StudyError for a name that is taken or a file without rows.
    """
    if Study.objects.filter(name=study_name.strip()).exists():
        raise StudyError(f"There is a study named {study_name!r} already. Choose another name.")
    with staged() as staging:
        pictures = importing.Pictures(path.parent, staging)
        rows = read_ratings_file(path, check=pictures.of)
        if not rows:
            raise StudyError(f"{path} holds no ratings: there is nothing to import.")
        with staging.published([pictures.of(row) for row in rows]), transaction.atomic():
            images = [pictures.stored(row, is_phantom=is_phantom) for row in rows]
            study = create_study(name=study_name, images=images, is_simulated=is_simulated, created_by=created_by)
            importing.store(study, list(zip(rows, images, strict=True)), is_simulated=is_simulated)
    return study
