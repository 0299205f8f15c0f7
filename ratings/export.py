"""Ratings to files: the five columns that training reads, the tidy table for analysis, and what its columns mean.

Rows stream from the database to both files in one pass; memory does not grow with their number. Images that a reader
could not judge are rows of the tidy table only.
"""

import contextlib
import csv
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils.crypto import salted_hmac

from medsyn.artifacts import atomic_folder, atomic_path
from medsyn.modalities import Kind, kind_from_name
from ratings.answer_codes import CANNOT_JUDGE_REASONS, DEFECTS
from ratings.csv_schema import RatingRow, write_ratings
from ratings.models import RatingQuerySet

_CHUNK_ROWS = 500
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def pseudonym(study_key: str, reader_key: int) -> str:
    """Names a reader within one study: the same in every export, nothing in another study, and without the
    server's secret key not to be traced back."""
    return "R-" + salted_hmac("ratings.pseudonym", f"{study_key}/{reader_key}", algorithm="sha256").hexdigest()[:12]


def formula_safe(text: str) -> str:
    """Spreadsheets run cells that begin with = + - @ TAB or CR; an apostrophe in front makes them text."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


@functools.cache
def _kind(slug: str) -> Kind:
    return kind_from_name(slug)


def _moment(value: datetime | None) -> str:
    return "" if value is None else value.isoformat(timespec="milliseconds")


def _flag(value: bool) -> int:
    return int(value)


def _shown(name: str) -> Callable[[dict], Any]:
    """The cell of one entry of Rating.display."""
    return lambda display: display.get(name, "")


def _shown_flag(name: str) -> Callable[[dict], Any]:
    """The same for a yes or no: 1, 0 or empty."""
    return lambda display: int(display[name]) if name in display else ""


@dataclass(frozen=True)
class Column:
    """A column of the tidy table."""

    name: str
    source: str  # path from Rating, for values_list
    meaning: str  # what the data dictionary says, with unit and range
    write: Callable[[Any], Any] = lambda value: "" if value is None else value


TIDY_COLUMNS = (
    Column("study", "assignment__study__name", "Name of the study", formula_safe),
    Column("study_uuid", "assignment__study__public_id", "Identity of the study", str),
    Column("reader", "assignment__reader_id", "Pseudonym of the reader; stable within the study, unrelated between"),
    Column("expert_level", "expert_level", "Level of the reader when rating: 1 trainee, 2 specialist, 3 senior"),
    Column("rating", "value", "1 poor, 2 acceptable, 3 excellent; empty: the reader could not judge"),
    Column(
        "cannot_judge",
        "cannot_judge",
        f"Why the reader could not judge: {', '.join(CANNOT_JUDGE_REASONS)}; empty: rated. Not a grade",
    ),
    Column("defects", "defects", f"Of {', '.join(DEFECTS)}, joined by ';'; empty: none named", ";".join),
    Column("comment", "comment", "The reader's own words", formula_safe),
    Column("image_uuid", "assignment__image__public_id", "Identity of the image", str),
    Column("image_sha256", "assignment__image__sha256", "sha256 of the image file's bytes"),
    Column("image_path", "assignment__image__file", "The image file, as in the ratings CSV", formula_safe),
    Column("kind", "assignment__image__prompt__kind", "Kind of image", lambda slug: _kind(slug).prefix),
    Column("modality", "assignment__image__prompt__kind", "Its modality", lambda slug: _kind(slug).modality),
    Column("prompt", "assignment__image__prompt__text", "What the image was to show", formula_safe),
    Column("source", "assignment__image__source", "generated: made here; imported: brought in as a file"),
    Column("phantom", "assignment__image__is_phantom", "1: a procedural phantom, not a medical image", _flag),
    Column("checkpoint", "assignment__image__model_name", "Name of the generator", formula_safe),
    Column("weights_sha256", "assignment__image__weights_sha256", "sha256 of the generator's weights"),
    Column("release", "assignment__image__release__digest", "Release that made the image; empty: none"),
    Column("seed", "assignment__image__seed", "Seed of the image; empty: imported"),
    Column("assignment_kind", "assignment__kind", "main, repeat, gold, real or training"),
    Column("occurrence", "assignment__occurrence", "1: first showing of the image to the reader; 2: a hidden repeat"),
    Column("block", "assignment__block", "Batch in which the image joined the study, from 0"),
    Column("position", "assignment__position", "Place in the reader's own list, from 0"),
    Column("shown_at", "shown_at", "When the image was painted, by the reader's clock (ISO 8601)", _moment),
    Column("first_input_at", "first_input_at", "First key or pointer press after that, by the same clock", _moment),
    Column("answered_at", "answered_at", "When the reader answered, by the same clock (ISO 8601)", _moment),
    Column("active_ms", "active_ms", "Milliseconds the image was looked at in a visible page; empty: unknown"),
    Column("submitted_at", "submitted_at", "When the server stored the rating (ISO 8601)", _moment),
    Column("viewport_width", "display", "Width of the page, CSS pixels; empty: unknown", _shown("viewport_width")),
    Column("viewport_height", "display", "Height of the page, CSS pixels", _shown("viewport_height")),
    Column("device_pixel_ratio", "display", "Screen pixels per CSS pixel", _shown("device_pixel_ratio")),
    Column("window_width", "display", "Window of the grey levels when answering, see unit", _shown("window_width")),
    Column("window_center", "display", "Its centre", _shown("window_center")),
    Column("window_unit", "display", "HU, or %: 0 to 100 is what was shown at first", _shown("window_unit")),
    Column("zoom", "display", "CSS pixels per pixel of the image when answering", _shown("zoom")),
    Column("inverted", "display", "1: shown inverted when answering", _shown_flag("inverted")),
    Column(
        "window_touched", "display", "1: the reader changed the window or inverted", _shown_flag("window_touched")
    ),
    Column("zoom_touched", "display", "1: the reader zoomed or panned", _shown_flag("zoom_touched")),
    Column("revision", "revision", "1: given once and left; each change, remark or undo raises it by one"),
    Column("protocol_version", "protocol_version", "Version of the study's protocol when rating"),
    Column("simulated", "is_simulated", "1: given by a simulated expert, no clinical evidence", _flag),
)
_SOURCES = tuple(dict.fromkeys(column.source for column in TIDY_COLUMNS))


@dataclass(frozen=True)
class ExportFiles:
    """The three files of an export."""

    ratings: Path  # the five columns of ratings.csv_schema
    tidy: Path  # one row per rating, TIDY_COLUMNS
    dictionary: Path  # what the tidy columns mean

    @classmethod
    def beside(cls, ratings: Path) -> "ExportFiles":
        """ratings.csv has ratings_tidy.csv and data_dictionary.csv beside it; x.csv has x_tidy.csv and
        x_data_dictionary.csv."""
        prefix = "" if ratings.name == "ratings.csv" else f"{ratings.stem}_"
        return cls(
            ratings=ratings,
            tidy=ratings.with_name(f"{ratings.stem}_tidy.csv"),
            dictionary=ratings.with_name(f"{prefix}data_dictionary.csv"),
        )


FILE_NAMES = tuple(field.name for field in fields(ExportFiles))


def _image_root(folder: Path, absolute: bool) -> str:
    """What stands before an image's file in the CSV: the artifact root, as seen from ``folder`` or absolute."""
    root = settings.ARTIFACT_ROOT
    return root.as_posix() if absolute else Path(os.path.relpath(root, folder)).as_posix()


class _TidyWriter:
    """Writes the tidy row of each rating that passes through on its way to the ratings CSV."""

    def __init__(self, file):
        self._writer = csv.writer(file)
        self._writer.writerow(column.name for column in TIDY_COLUMNS)
        self._pseudonyms: dict[tuple, str] = {}  # one entry per reader and study, not per row

    def write(self, record: dict[str, Any], image_path: str) -> None:
        key = (str(record["assignment__study__public_id"]), record["assignment__reader_id"])
        if key not in self._pseudonyms:
            self._pseudonyms[key] = pseudonym(*key)
        shown = record | {"assignment__reader_id": self._pseudonyms[key], "assignment__image__file": image_path}
        self._writer.writerow(column.write(shown[column.source]) for column in TIDY_COLUMNS)


def _rows(ratings: RatingQuerySet, tidy: _TidyWriter, folder: Path, absolute_paths: bool) -> Iterator[RatingRow]:
    """Rows of the ratings CSV; the tidy rows are written by the way, and they alone have what is no rating."""
    image_root = _image_root(folder, absolute_paths)
    values = ratings.order_by("pk").values_list(*_SOURCES)
    for row in values.iterator(chunk_size=_CHUNK_ROWS):
        record = dict(zip(_SOURCES, row, strict=True))
        image_path = f"{image_root}/{record['assignment__image__file']}"
        tidy.write(record, image_path)
        if record["value"] is None:
            continue
        yield RatingRow(
            image_path=image_path,
            rating=record["value"],
            modality=_kind(record["assignment__image__prompt__kind"]).modality,
            expert_level=record["expert_level"],
            prompt=record["assignment__image__prompt__text"],
        )


def _write(files: ExportFiles, ratings: RatingQuerySet, folder: Path, absolute_paths: bool) -> int:
    """Fill the three files; paths in them are relative to ``folder``. Returns the number of ratings."""
    with contextlib.ExitStack() as stack:
        ratings_file, tidy_file, dictionary_file = (
            stack.enter_context(path.open("w", newline="", encoding="utf-8"))
            for path in (files.ratings, files.tidy, files.dictionary)
        )
        dictionary = csv.writer(dictionary_file)
        dictionary.writerow(("column", "meaning"))
        dictionary.writerows((column.name, column.meaning) for column in TIDY_COLUMNS)
        tidy = _TidyWriter(tidy_file)
        return write_ratings(ratings_file, _rows(ratings, tidy, folder, absolute_paths))


def write_folder(folder: Path, ratings: RatingQuerySet, *, absolute_paths: bool, **manifest) -> int:
    """Write ratings.csv, ratings_tidy.csv and data_dictionary.csv into a new folder, all or nothing."""
    with atomic_folder(folder, **manifest) as temporary:
        return _write(ExportFiles.beside(temporary / "ratings.csv"), ratings, folder, absolute_paths)


def write_files(path: Path, ratings: RatingQuerySet, *, absolute_paths: bool) -> int:
    """Write the ratings to ``path`` and the other two files beside it; each appears only once it is whole."""
    files = ExportFiles.beside(path)
    with (
        atomic_path(files.dictionary) as dictionary,
        atomic_path(files.tidy) as tidy,
        atomic_path(files.ratings) as ratings_path,
    ):
        temporary = ExportFiles(ratings=ratings_path, tidy=tidy, dictionary=dictionary)
        return _write(temporary, ratings, path.parent, absolute_paths)
