"""Ratings out to files, and in from them."""

import secrets
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from medsyn.artifacts import file_sha256
from medsyn.modalities import canonical_modality
from ratings import export, importing
from ratings.csv_schema import read_ratings_file
from ratings.models import Export, Rating, RatingQuerySet, Study
from ratings.services.errors import StudyError
from ratings.services.studies import create_study


def freeze_export(
    *,
    study: Study | None = None,
    modality: str = "",
    include_simulated: bool | None = None,
    output: Path | None = None,
    absolute_paths: bool = False,
    created_by=None,
) -> Export:
    """Write the ratings that stand now to a CSV, with the tidy table and the data dictionary beside it; record it.

    study: one study, or None for all. modality: one of medsyn.modalities (aliases too), or "" for all.
    include_simulated: None takes ratings of simulated experts only where ``study`` is a simulated one.
    output: the CSV's path, or a folder that gets ratings.csv; None: <artifact root>/exports/<time>-<number>/.
    Image paths are relative to the CSV's folder unless ``absolute_paths``.

    Raises StudyError where no rating is left to write, UnknownModality, OSError (nothing half-written stays).
    """
    modality = canonical_modality(modality) if modality else ""
    if include_simulated is None:
        include_simulated = study is not None and study.is_simulated
    chosen = {"study": study, "modality": modality}
    ratings = Rating.objects.exportable(**chosen, include_simulated=include_simulated)
    _require_ratings(ratings, Rating.objects.exportable(**chosen))
    has_simulated = ratings.filter(is_simulated=True).exists()
    ratings = Rating.objects.exportable(**chosen, include_simulated=include_simulated, include_unjudged=True)
    filters = {
        "study": study.name if study else None,
        "modality": modality or None,
        "include_simulated": include_simulated,
        "absolute_paths": absolute_paths,
    }
    if output is None:
        folder = settings.ARTIFACT_ROOT / "exports" / f"{timezone.now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        row_count = export.write_folder(folder, ratings, absolute_paths=absolute_paths, filters=filters)
        path, file = folder / "ratings.csv", f"exports/{folder.name}/ratings.csv"
    else:
        path = (output / "ratings.csv" if output.is_dir() else output).absolute()
        row_count, file = export.write_files(path, ratings, absolute_paths=absolute_paths), str(path)
    return Export.objects.create(
        study=study,
        file=file,
        sha256=file_sha256(path),
        row_count=row_count,
        filters=filters,
        has_simulated=has_simulated,
        created_by=created_by,
    )


def _require_ratings(ratings: RatingQuerySet, with_simulated: RatingQuerySet) -> None:
    if ratings.exists():
        return
    left_out = with_simulated.count()
    if left_out:
        raise StudyError(
            f"No ratings to export: the {left_out} that match come from simulated experts. "
            "Include them expressly (--include-simulated) if they are what you want."
        )
    raise StudyError("No ratings to export: none match. Choose another study or modality, or rate images first.")


def import_ratings(
    *, path: Path, study_name: str, is_simulated: bool = False, is_phantom: bool = False, created_by=None
) -> Study:
    """Store a ratings CSV and copies of its images as a new study.

    The whole file is checked first; RatingsCSVError lists every bad row with its line (a missing or unreadable
    image included), and then nothing is stored. The file names no readers: the n-th rating of an image at a level
    goes to the n-th anonymous reader of that level, an account that nobody can sign in to. An image whose bytes and
    prompt are known already is not stored twice and keeps its provenance. ``is_phantom`` marks new images as
    procedural phantoms, ``is_simulated`` the ratings as given by simulated experts.

    Raises FileNotFoundError, RatingsCSVError, or StudyError for a name that is taken or a file without rows.
    """
    if Study.objects.filter(name=study_name.strip()).exists():
        raise StudyError(f"There is a study named {study_name!r} already. Choose another name.")
    pictures = importing.Pictures(path.parent)
    rows = read_ratings_file(path, check=pictures.check)
    if not rows:
        raise StudyError(f"{path} holds no ratings: there is nothing to import.")
    with pictures.copied(), transaction.atomic():
        images = [pictures.image_of(row, is_phantom=is_phantom) for row in rows]
        study = create_study(name=study_name, images=images, is_simulated=is_simulated, created_by=created_by)
        importing.store(study, list(zip(rows, images, strict=True)), is_simulated=is_simulated)
    return study
