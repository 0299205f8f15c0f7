"""The dataset CSV: ``path,Text,modality``, every row checked before training starts. No torch here.

All that is wrong is told at once, by line. A row is bad if its number of fields is not the header's (an unquoted
comma), its file is missing or unreadable, its caption is empty or follows no known prefix, or its modality is
unknown or another than the caption's.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from medsyn.artifacts import file_sha256
from medsyn.imaging import ImageReadError, MedicalImage, load
from medsyn.modalities import ParsedPrompt, PromptError, UnknownModality, kind_from_name, parse_prompt

T = TypeVar("T")
MODALITY_COLUMNS = ("modality", "modal")
GROUP_COLUMNS = ("group", "patient", "patient_id")
_FIELD_BYTES = 1 << 20  # a caption longer than this is a quote that was never closed

# Words that tie a caption to one side of the picture. Too many rather than too few: leaving an image unmirrored
# costs little, a mirrored "left eye" teaches the wrong side. OD and OS are the right and left eye, RUL to LLL lobes.
_SIDE_WORDS = re.compile(r"\b(left|right|lateralit|dext|sinist)\w*", re.IGNORECASE)
_SIDE_LETTERS = re.compile(r"\b(L|R|OD|OS|RUL|RML|RLL|LUL|LLL)\b")


class DatasetError(ValueError):
    """The dataset cannot be trained on; the message lists every bad row with its line."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    line: int  # of the CSV file, from 1, where the row begins
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True)
class Row:
    """A row that can."""

    line: int  # of the CSV file, from 1, where the row begins
    path: Path  # the image file
    prompt: ParsedPrompt
    group: str = ""  # patient or other group; empty where the CSV has no such column
    image_sha256: str = ""  # of the file's bytes; empty until the image was checked

    @property
    def text(self) -> str:
        return self.prompt.text

    @property
    def may_flip(self) -> bool:
        """Whether the caption still holds for the mirrored image."""
        return not names_a_side(self.prompt.description)


def names_a_side(text: str) -> bool:
    """Whether a caption speaks of left, right or laterality."""
    return bool(_SIDE_WORDS.search(text) or _SIDE_LETTERS.search(text))


def load_dataset(
    csv_path: Path,
    *,
    image_column: str = "path",
    caption_column: str = "Text",
    skip_bad_rows: bool = False,
    max_rows: int | None = None,
    seed: int = 0,
    num_threads: int = 4,
) -> tuple[list[Row], list[BadRow]]:
    """The usable rows in file order, their images opened and hashed, and the bad rows that were left out.

    Raises DatasetError with every bad row, unless ``skip_bad_rows``; in any case where the file itself is no
    dataset CSV or no row is left. ``max_rows`` draws that many of the well-formed rows by ``seed``; the images of
    the others are not opened.
    """
    rows, bad = read_rows(csv_path, image_column=image_column, caption_column=caption_column)
    if max_rows is not None and max_rows < len(rows):
        chosen = np.random.default_rng(seed).choice(len(rows), size=max_rows, replace=False)
        rows = [rows[index] for index in sorted(chosen)]
    rows, unreadable = check_images(rows, num_threads=num_threads)
    bad = sorted([*bad, *unreadable], key=lambda row: row.line)
    if bad and not skip_bad_rows:
        raise DatasetError(_report(csv_path, bad, "Correct them, or leave them out with --skip-bad-rows."))
    if not rows:
        raise DatasetError(_report(csv_path, bad, "No usable row is left."))
    return rows, bad


def _report(csv_path: Path, bad: Sequence[BadRow], remedy: str) -> str:
    if not bad:
        return f"{csv_path} has no rows below its header."
    rows = "row" if len(bad) == 1 else "rows"
    return "\n  ".join([f"{csv_path} has {len(bad)} bad {rows}:", *map(str, bad)]) + f"\n{remedy}"


def read_rows(csv_path: Path, *, image_column: str, caption_column: str) -> tuple[list[Row], list[BadRow]]:
    """The well-formed rows and the others; images are not opened. Raises DatasetError for what is no dataset CSV."""
    records = _records(csv_path)
    _, header = next(records)
    columns = _Columns(csv_path, header, image_column, caption_column)
    rows: list[Row] = []
    bad: list[BadRow] = []
    for line, fields in records:
        outcome = BadRow(line, fields) if isinstance(fields, str) else columns.row(line, fields)
        (bad if isinstance(outcome, BadRow) else rows).append(outcome)
    return rows, bad


def _records(csv_path: Path) -> Iterator[tuple[int, list[str] | str]]:
    """(line, fields) of every record, the header first; (line, what is wrong) for one that cannot be parsed."""
    csv.field_size_limit(_FIELD_BYTES)
    reader = csv.reader(io.StringIO(_text(csv_path), newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"broken quoting ({error}). Put the caption in double quotes, a quote inside it twice."
            continue
        if fields:
            yield line, fields


def _text(csv_path: Path) -> str:
    try:
        content = csv_path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"There is no dataset CSV at {csv_path}.") from None
    except IsADirectoryError:
        raise DatasetError(f"{csv_path} is a folder. Give the dataset CSV itself.") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(f"{csv_path}, line {line}: not UTF-8 text. Save the file as UTF-8.") from None
    if not text.strip():
        raise DatasetError(f"{csv_path} is empty. Its first line must be: path,Text,modality")
    return text


class _Columns:
    """Where the header has what; turns a record into a Row or a BadRow."""

    def __init__(self, csv_path: Path, header: list[str] | str, image_column: str, caption_column: str) -> None:
        names = [] if isinstance(header, str) else [name.strip() for name in header]
        modality = [name for name in names if name in MODALITY_COLUMNS]
        groups = [name for name in names if name in GROUP_COLUMNS]
        wanted = {image_column, caption_column, *modality[:1], *groups[:1]}
        if len(wanted) < 3 or set(names) != wanted or len(names) != len(wanted):
            raise DatasetError(
                f"{csv_path}: the first line must name the columns {image_column},{caption_column},modality (modal "
                f"is taken for modality, one of {', '.join(GROUP_COLUMNS)} may follow); it reads: {','.join(names)}"
            )
        self._folder = csv_path.parent
        self._names = names
        self._image, self._caption, self._modality = image_column, caption_column, modality[0]
        self._group = groups[0] if groups else None

    def row(self, line: int, fields: list[str]) -> Row | BadRow:
        if len(fields) != len(self._names):
            return BadRow(
                line,
                f"{len(fields)} fields instead of {len(self._names)}. A caption that holds a comma must be put in "
                "double quotes.",
            )
        cells = dict(zip(self._names, (cell.strip() for cell in fields), strict=True))
        try:
            prompt = _prompt(cells[self._caption], cells[self._modality])
        except ValueError as error:
            return BadRow(line, str(error))
        if not cells[self._image]:
            return BadRow(line, f"the column {self._image} is empty")
        group = cells[self._group] if self._group else ""
        return Row(line, self._folder / cells[self._image], prompt, group)


def _prompt(caption: str, modality: str) -> ParsedPrompt:
    """Raises PromptError or UnknownModality, and ValueError where the two contradict each other."""
    if not caption:
        raise PromptError("the caption is empty")
    prompt = parse_prompt(caption)
    if not modality:
        raise UnknownModality("the modality is empty")
    kind = kind_from_name(modality)
    other_kind = not kind.is_bare and not prompt.kind.is_bare and kind != prompt.kind
    if kind.modality != prompt.modality or other_kind:
        raise ValueError(f"modality {modality!r} contradicts the caption, which begins with {prompt.kind.prefix!r}")
    return prompt


def check_images(rows: Sequence[Row], *, num_threads: int) -> tuple[list[Row], list[BadRow]]:
    """Open every image in parallel threads: the rows with their file's sha256, and those that cannot be read."""
    return sort_out(rows, _check_image, num_threads=num_threads, description="Checking images")


def sort_out(
    rows: Sequence[Row], look: Callable[[Row], T | BadRow], *, num_threads: int, description: str
) -> tuple[list[T], list[BadRow]]:
    """``look`` at every row in parallel threads: what it found, and the bad rows, both in row order."""
    good: list[T] = []
    bad: list[BadRow] = []
    with ThreadPoolExecutor(num_threads) as threads:
        looked_at = threads.map(look, rows)
        bar = tqdm(looked_at, total=len(rows), desc=description, unit="image", disable=None if rows else True)
        try:
            for outcome in bar:
                if isinstance(outcome, BadRow):
                    bad.append(outcome)
                else:
                    good.append(outcome)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)  # else leaving the block would open all the others
            raise
    return good, bad


def open_row(row: Row) -> tuple[Row, MedicalImage] | BadRow:
    """The row with its file's sha256, and the image; or why it cannot be read."""
    try:
        image = load(row.path, modality=row.prompt.kind.prefix)
        sha256 = file_sha256(row.path)
    except (ImageReadError, OSError) as error:
        return BadRow(row.line, str(error))
    return replace(row, image_sha256=sha256), image


def _check_image(row: Row) -> Row | BadRow:
    opened = open_row(row)
    return opened if isinstance(opened, BadRow) else opened[0]
