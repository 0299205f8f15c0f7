"""The dataset CSV: ``path,Text,modality``, read row by row; images are not opened here. Standard library only.

All that is wrong is told at once, by line. A row is bad if its number of fields is not the header's (an unquoted
comma), its caption is empty or follows no known prefix, its modality is unknown or another than the caption's, or its
known grade, where there is such a column, is none.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsyn.modalities import ParsedPrompt, PromptError, UnknownModality, kind_from_name, parse_prompt

MODALITY_COLUMNS = ("modality", "modal")
GROUP_COLUMNS = ("group", "patient", "patient_id")
GOLD_COLUMN = "gold"
GRADES = {"1": 1, "2": 2, "3": 3}  # poor, acceptable, excellent
_FIELD_BYTES = 1 << 20  # a caption longer than this is a quote that was never closed

# Words that tie a caption to one side of the picture. Too many rather than too few: leaving an image unmirrored
# costs little, a mirrored "left eye" teaches the wrong side. OD and OS are the right and left eye, RUL to LLL lobes.
_SIDE_WORDS = re.compile(r"\b(left|right|lateralit|dext|sinist)\w*", re.IGNORECASE)
_SIDE_LETTERS = re.compile(r"\b(L|R|OD|OS|RUL|RML|RLL|LUL|LLL)\b")


class DatasetError(ValueError):
    """The dataset cannot be used; the message lists every bad row with its line."""


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
    gold: int | None = None  # grade the image is known to have, 1 to 3; None: not known, or no such column

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


def describe_bad_rows(csv_path: Path, bad: Sequence[BadRow], remedy: str) -> str:
    """Bad rows, one below the other, and what to do about them."""
    if not bad:
        return f"{csv_path} has no rows below its header."
    rows = "row" if len(bad) == 1 else "rows"
    return "\n  ".join([f"{csv_path} has {len(bad)} bad {rows}:", *map(str, bad)]) + f"\n{remedy}"


def read_rows(
    csv_path: Path, *, image_column: str = "path", caption_column: str = "Text", with_gold: bool = False
) -> tuple[list[Row], list[BadRow]]:
    """The well-formed rows and the others; images are not opened. ``with_gold``: a column of known grades is allowed.

    Raises DatasetError for what is no dataset CSV.
    """
    records = _records(csv_path)
    _, header = next(records)
    columns = _Columns(csv_path, header, image_column, caption_column, with_gold)
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

    def __init__(
        self, csv_path: Path, header: list[str] | str, image_column: str, caption_column: str, with_gold: bool
    ) -> None:
        names = [] if isinstance(header, str) else [name.strip() for name in header]
        modality = [name for name in names if name in MODALITY_COLUMNS]
        groups = [name for name in names if name in GROUP_COLUMNS]
        gold = [name for name in names if with_gold and name == GOLD_COLUMN]
        wanted = {image_column, caption_column, *modality[:1], *groups[:1], *gold[:1]}
        if len(wanted) < 3 or set(names) != wanted or len(names) != len(wanted):
            more = f"one of {', '.join(GROUP_COLUMNS)}" + (f" and {GOLD_COLUMN}" if with_gold else "")
            raise DatasetError(
                f"{csv_path}: the first line must name the columns {image_column},{caption_column},modality (modal "
                f"is taken for modality, {more} may follow); it reads: {','.join(names)}"
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
            gold = _gold(cells.get(GOLD_COLUMN, ""))
        except ValueError as error:
            return BadRow(line, str(error))
        if not cells[self._image]:
            return BadRow(line, f"the column {self._image} is empty")
        group = cells[self._group] if self._group else ""
        return Row(line, self._folder / cells[self._image], prompt, group, gold=gold)


def _gold(text: str) -> int | None:
    if text and text not in GRADES:
        raise ValueError(f"the known grade is {text!r}; it must be 1, 2, 3 or empty")
    return GRADES.get(text)


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
