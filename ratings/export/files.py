"""The files of an export and how they come to stand in a folder: all of them or none."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from django.conf import settings
from django.db.models import QuerySet

from medsyn.artifacts import atomic_folder, atomic_path
from ratings.csv_schema import TIDY_NAME
from ratings.export.columns import RATINGS_COLUMNS, TIDY_COLUMNS, Column
from ratings.export.images import IMAGE_COLUMNS, image_rows, split_facts
from ratings.export.selection import Selection
from ratings.export.splits import SPLIT_COLUMNS, split_rows
from ratings.export.streaming import WrittenFile, new_csv
from ratings.models import Export

# By content, the files of an export: name -> what its file is called where the first one is called "x.csv". The
# first is the export's own file; beside a file of the standard name the others have no prefix.
_STANDARD_NAME = {Export.Content.RATINGS: "ratings.csv", Export.Content.IMAGES: "images.csv"}
_DICTIONARY = "{prefix}data_dictionary.csv"
_BESIDE = {
    Export.Content.RATINGS: {
        "ratings": "{stem}.csv",
        "tidy": TIDY_NAME,
        "dictionary": _DICTIONARY,
    },
    Export.Content.IMAGES: {
        "images": "{stem}.csv",
        "splits": "{prefix}splits.csv",
        "dictionary": _DICTIONARY,
    },
}
FILE_NAMES = tuple(dict.fromkeys(name for names in _BESIDE.values() for name in names))
Writers = Mapping[str, Callable[[Path], WrittenFile]]  # by name of the file, what fills it


def files_beside(path: Path, content: str = Export.Content.RATINGS) -> dict[str, Path]:
    """By name, the files of an export whose first file is ``path``: ratings.csv has ratings_tidy.csv and
    data_dictionary.csv beside it; x.csv has x_tidy.csv and x_data_dictionary.csv."""
    prefix = "" if path.name == _STANDARD_NAME[content] else f"{path.stem}_"
    named = {name: text.format(stem=path.stem, prefix=prefix) for name, text in _BESIDE[content].items()}
    first = next(iter(named))
    return {name: path if name == first else path.with_name(text) for name, text in named.items()}


def standard_path(folder: Path, content: str) -> Path:
    """Where the first file lies in a folder of its own."""
    return folder / _STANDARD_NAME[content]


def image_root(folder: Path, *, absolute: bool) -> str:
    """What stands before an image's file in a CSV of ``folder``: the artifact root, from there or absolute."""
    root = settings.ARTIFACT_ROOT
    return root.as_posix() if absolute else Path(os.path.relpath(root, folder)).as_posix()


def _query_to(path: Path, columns: tuple[Column, ...], query: QuerySet) -> WrittenFile:
    with new_csv(path, [column.name for column in columns]) as file:
        file.write_query(query)
    return file.written


def _rows_to(path: Path, header, rows) -> WrittenFile:
    with new_csv(path, header) as file:
        file.write_rows(rows)
    return file.written


def _dictionary_to(path: Path, meanings: Mapping[str, str]) -> WrittenFile:
    return _rows_to(path, ("column", "meaning"), meanings.items())


def rating_writers(selection: Selection) -> Writers:
    """Five columns for training, the tidy table for analysis, and what its columns mean."""
    five = selection.table(selection.trainable(), RATINGS_COLUMNS, is_spreadsheet=False)
    tidy = selection.table(selection.answered(), TIDY_COLUMNS, is_spreadsheet=True)
    meanings = {column.name: column.meaning for column in TIDY_COLUMNS}
    return {
        "ratings": lambda path: _query_to(path, RATINGS_COLUMNS, five),
        "tidy": lambda path: _query_to(path, TIDY_COLUMNS, tidy),
        "dictionary": lambda path: _dictionary_to(path, meanings),
    }


def image_writers(selection: Selection, newest_image: int) -> Writers:
    """One row per image of the study, the sides for learning elsewhere, and what the columns of both mean."""
    return {
        "images": lambda path: _rows_to(
            path, IMAGE_COLUMNS, image_rows(selection.study, selection.answered(), newest_image)
        ),
        "splits": lambda path: _rows_to(
            path,
            SPLIT_COLUMNS,
            split_rows(split_facts(selection.study, newest_image), seed=selection.study.order_seed),
        ),
        "dictionary": lambda path: _dictionary_to(path, SPLIT_COLUMNS | IMAGE_COLUMNS),
    }


def write_folder(folder: Path, content: str, writers: Writers, **manifest) -> dict[str, WrittenFile]:
    """Fill a new folder, all or nothing; by name what the files hold."""
    digests: dict[str, str] = {}
    with atomic_folder(folder, digests=digests, **manifest) as temporary:
        paths = files_beside(standard_path(temporary, content), content)
        written = {name: writers[name](path) for name, path in paths.items()}
        digests |= {paths[name].name: file.sha256 for name, file in written.items()}
    return written


def write_files(path: Path, content: str, writers: Writers) -> dict[str, WrittenFile]:
    """Write the first file to ``path`` and the others beside it; they appear once all of them are whole."""
    with _temporary(files_beside(path, content)) as paths:
        return {name: writers[name](temporary) for name, temporary in paths.items()}


@contextlib.contextmanager
def _temporary(paths: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Temporary siblings, by name; the first one gets its name last."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(atomic_path(path)) for name, path in paths.items()}
