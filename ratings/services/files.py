"""Ratings out to files that can be written again to the same bytes."""

import secrets
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from medsyn.modalities import canonical_modality
from ratings.export import files as export_files
from ratings.export.code_version import code_version
from ratings.export.images import last_study_image
from ratings.export.selection import Selection
from ratings.export.watermark import HistoryInFlight, last_settled_event
from ratings.models import Export, Study
from ratings.services.errors import StudyError

_NEVER = 0  # keys of events begin with 1


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

    The CSV has what may train a selector (RatingQuerySet.trainable), the tidy table every rating that counts.

    study: one study, or None for all. modality: one of medsyn.modalities (aliases too), or "" for all.
    include_simulated: None takes ratings of simulated experts only where ``study`` is a simulated one.
    output: the CSV's path, or a folder that gets ratings.csv; None: <artifact root>/exports/<time>-<number>/.
    Image paths are relative to the CSV's folder unless ``absolute_paths``.

    Raises StudyError where no rating is left to write or ratings are being stored for too long, UnknownModality,
    OSError (nothing half-written stays).
    """
    content = Export.Content.RATINGS
    path = _target(output, content)
    if include_simulated is None:
        include_simulated = study is not None and study.is_simulated
    selection = Selection(
        study=study,
        modality=canonical_modality(modality) if modality else "",
        include_simulated=include_simulated,
        last_event=_last_event(),
        as_of=timezone.now(),
        image_root=export_files.image_root(path.parent, absolute=absolute_paths),
    )
    _require_ratings(selection)
    filters = {**_filters(selection), "absolute_paths": absolute_paths}
    return _write(content, selection, filters, path, is_folder=output is None, created_by=created_by)


def freeze_images(*, study: Study, output: Path | None = None, created_by=None) -> Export:
    """Write what all readers together say of each image of ``study`` to images.csv, with its dictionary; record it.

    ``output`` and errors as for ``freeze_export``. A study without ratings has images all the same.
    """
    content = Export.Content.IMAGES
    path = _target(output, content)
    newest = last_study_image(study)
    if not newest:
        raise StudyError(f"The study {study.name!r} has no images yet: there is nothing to export.")
    selection = Selection.of_images(study, last_event=_last_event())
    filters = {**_filters(selection), "last_study_image": newest}
    return _write(content, selection, filters, path, is_folder=output is None, created_by=created_by)


def rerun_export(*, export: Export, output: Path | None = None, created_by=None) -> Export:
    """Write an export again, from the same events, with the same choice; record it as a repetition of ``export``.

    ``differing_files`` of the new row names the files whose bytes are others than before: by code that has changed
    since (code_version), by another secret key behind the pseudonyms, or because a row that never changes was
    changed in the database. ``output`` as for ``freeze_export``; errors too.

    Raises StudyError for an export from before events kept whole answers, which cannot be repeated.
    """
    if export.last_event is None or "as_of" not in export.filters:
        raise StudyError(f"Export {export.pk} was written before exports could be repeated. Export again instead.")
    filters = export.filters
    selection = Selection(
        study=export.study,
        modality=filters["modality"] or "",
        include_simulated=filters["include_simulated"],
        last_event=export.last_event,
        as_of=datetime.fromisoformat(filters["as_of"]),
        image_root=filters["image_root"],
    )
    path = _target(output, export.content)
    original = export.rerun_of or export
    return _write(
        export.content, selection, filters, path, is_folder=output is None, created_by=created_by, rerun_of=original
    )


def _target(output: Path | None, content: str) -> Path:
    """Where the first file is to lie."""
    if output is None:
        folder = settings.ARTIFACT_ROOT / "exports" / f"{timezone.now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        return export_files.standard_path(folder, content)
    return (export_files.standard_path(output, content) if output.is_dir() else output).absolute()


def _last_event() -> int:
    try:
        newest = last_settled_event()
    except HistoryInFlight as error:
        raise StudyError(str(error)) from error
    return _NEVER if newest is None else newest


def _filters(selection: Selection) -> dict:
    """What was chosen, as the row keeps it and a re-run reads it."""
    return {
        "study": selection.study.name if selection.study else None,
        "modality": selection.modality or None,
        "include_simulated": selection.include_simulated,
        "as_of": selection.as_of.isoformat(),
        "image_root": selection.image_root,
    }


def _require_ratings(selection: Selection) -> None:
    if selection.answered().exists():
        return
    left_out = selection.with_simulated().answered().count()
    if left_out:
        raise StudyError(
            f"No ratings to export: the {left_out} that match come from simulated experts. "
            "Include them expressly (--include-simulated) if they are what you want."
        )
    raise StudyError("No ratings to export: none match. Choose another study or modality, or rate images first.")


def _write(
    content: str, selection: Selection, filters: dict, path: Path, *, is_folder: bool, created_by, rerun_of=None
) -> Export:
    """Write the files and their row."""
    if content == Export.Content.IMAGES:
        writers = export_files.image_writers(selection, filters["last_study_image"])
    else:
        writers = export_files.rating_writers(selection)
    version = code_version()
    if is_folder:
        manifest = {"filters": filters, "last_event": selection.last_event, "code_version": version}
        written = export_files.write_folder(path.parent, content, writers, **manifest)
    else:
        written = export_files.write_files(path, content, writers)
    files = {
        name: {"file": _recorded(place), "sha256": written[name].sha256, "row_count": written[name].row_count}
        for name, place in export_files.files_beside(path, content).items()
    }
    first = next(iter(files.values()))
    return Export.objects.create(
        content=content,
        study=selection.study,
        **first,
        files=files,
        filters=filters,
        last_event=selection.last_event,
        code_version=version,
        rerun_of=rerun_of,
        has_simulated=selection.has_simulated(),
        created_by=created_by,
    )


def _recorded(path: Path) -> str:
    """A file below the artifact root by its path from there, any other by its absolute path."""
    root = settings.ARTIFACT_ROOT.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
