"""The rows of either table of an export, read back: five columns, or the tidy table with all it holds."""

import csv
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medsyn.modalities import PromptError, canonical_modality, parse_prompt
from ratings import csv_schema
from ratings.answer_codes import CANNOT_JUDGE_REASONS, MAX_COMMENT
from ratings.csv_schema import Fault, RatingRow, RatingsCSVError, formula_unsafe
from ratings.export.columns import TIDY_COLUMNS
from ratings.models import Assignment, Rating

_KNOWN = frozenset(column.name for column in TIDY_COLUMNS)
_NEEDED = frozenset(
    (
        "study_uuid",
        "reader",
        "expert_level",
        "rating",
        "image_uuid",
        "image_sha256",
        "image_path",
        "prompt",
        "position",
    )
)
_CODE = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_MAX_VERSION = 1000


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be stored."""

    line: int  # where the record ended
    reason: str


@dataclass(frozen=True, slots=True)
class ImportedRow:
    """One rating of a file."""

    line: int  # where the record ended
    image_path: str  # relative to the file's folder, or absolute
    prompt: str  # canonical
    reader: str = ""  # pseudonym; empty: the file names no readers
    study: str = ""  # identity of the study it comes from; empty: not told
    answer: Mapping[str, Any] = field(default_factory=dict)  # fields of ratings.models.Answer
    rating: Mapping[str, Any] = field(default_factory=dict)  # state and revision
    place: Mapping[str, Any] = field(default_factory=dict)  # fields of Assignment: kind, occurrence, block, position
    image: Mapping[str, Any] = field(default_factory=dict)  # fields of GeneratedImage that the file tells
    gold_grade: int | None = None

    def resolve(self, folder: Path) -> Path:
        """The image's path, for a file that lies in ``folder``."""
        return folder / self.image_path


def read_rows(path: Path) -> Iterator[ImportedRow | BadRow]:
    """Every row of a ratings CSV or a tidy table, told apart by their columns, in the order of the file.

    Raises FileNotFoundError, and RatingsCSVError where the file is no such table: wrong columns, not UTF-8.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            header = next(csv.reader([file.readline()]), [])
            file.seek(0)
            if set(header) == set(csv_schema.COLUMNS):
                yield from map(_of_five_columns, csv_schema.scan_ratings(file, str(path)))
            else:
                _require_tidy(header, path)
                yield from _tidy_rows(csv.DictReader(file, strict=True))
        except UnicodeDecodeError as error:
            raise RatingsCSVError(str(path), [f"byte {error.start}: not UTF-8. Save the file as UTF-8."]) from None


def _require_tidy(header: list[str], path: Path) -> None:
    missing, unknown = _NEEDED - set(header), set(header) - _KNOWN
    if not missing and not unknown and len(set(header)) == len(header):
        return
    text = f"line 1: columns are {', '.join(header) or 'missing'}; they must be {','.join(csv_schema.COLUMNS)}"
    if "image_sha256" in header or "reader" in header:
        text = f"line 1: for a tidy table, missing: {', '.join(sorted(missing)) or 'none'}; unknown or double: "
        text += ", ".join(sorted(unknown)) or "none"
    raise RatingsCSVError(str(path), [text])


def _of_five_columns(row: RatingRow | Fault) -> ImportedRow | BadRow:
    if isinstance(row, Fault):
        return BadRow(row.line, row.reason)
    return ImportedRow(
        line=row.line,
        image_path=row.image_path,
        prompt=row.prompt,
        answer={"value": row.rating, "expert_level": row.expert_level},
    )


def _tidy_rows(reader: csv.DictReader) -> Iterator[ImportedRow | BadRow]:
    try:
        for record in reader:
            try:
                yield _of_tidy(record, reader.line_num)
            except (ValueError, PromptError) as error:
                yield BadRow(reader.line_num, str(error))
    except csv.Error as error:
        yield BadRow(reader.line_num, str(error))


def _of_tidy(record: dict, line: int) -> ImportedRow:
    if None in record or None in record.values():
        raise ValueError("more or fewer fields than columns; quote the text that holds commas")
    cells = _Cells(record)
    prompt = parse_prompt(cells.text("prompt"))
    modality = cells.text("modality")
    if modality and canonical_modality(modality) != prompt.modality:
        raise ValueError(f"modality is {modality} but the prompt begins with {prompt.kind.prefix!r}")
    image_path = cells.text("image_path")
    if not image_path:
        raise ValueError("image_path is empty")
    if not cells.text("reader"):
        raise ValueError("reader is empty")
    return ImportedRow(
        line=line,
        image_path=image_path,
        prompt=prompt.text,
        reader=cells.text("reader"),
        study=str(cells.read("study_uuid", uuid.UUID)),
        answer=_answer(cells),
        rating={"state": _state(cells), "revision": cells.whole("revision", 1, 2**31 - 1) or 1},
        place=_place(cells),
        image=_image(cells),
        gold_grade=cells.whole("gold_grade", 1, 3),
    )


class _Cells:
    """The cells of a record by column; a column that the file does not have is empty."""

    def __init__(self, record: Mapping[str, str]):
        self._record = record

    def text(self, column: str) -> str:
        return formula_unsafe(self._record.get(column, ""))

    def short(self, column: str, most: int) -> str:
        """A text of at most so many characters: as many as PostgreSQL takes there."""
        text = self.text(column)
        if len(text) > most:
            raise ValueError(f"{column} has {len(text)} characters, more than {most}")
        return text

    def read(self, column: str, convert: Callable[[str], Any]) -> Any:
        """None where empty; ValueError that names the column."""
        text = self.text(column)
        try:
            return convert(text) if text else None
        except ValueError:
            raise ValueError(f"{column} is {text!r}, which cannot be read") from None

    def whole(self, column: str, least: int, most: int) -> int | None:
        value = self.read(column, int)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{column} is {value}, not one of {least} to {most}")
        return value

    def choice(self, column: str, allowed, default: str) -> str:
        value = self.text(column) or default
        if value not in allowed:
            raise ValueError(f"{column} is {value!r}, not one of {', '.join(allowed)}")
        return value

    def flag(self, column: str) -> bool | None:
        return {"": None, "0": False, "1": True}[self.choice(column, ("0", "1"), "") if self.text(column) else ""]

    def moment(self, column: str) -> datetime | None:
        value = self.read(column, datetime.fromisoformat)
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def _state(cells: _Cells) -> str:
    """As the column says; older tables have none."""
    answered = [state.value for state in Rating.ANSWERED]
    implied = Rating.State.SUBMITTED if cells.text("rating") else Rating.State.CANNOT_JUDGE
    state = cells.choice("state", answered, implied.value)
    if state != implied:
        raise ValueError(f"state is {state} but rating is {cells.text('rating')!r}")
    return state


def _answer(cells: _Cells) -> dict[str, Any]:
    level = cells.whole("expert_level", 1, 3)
    value, reason = cells.whole("rating", 1, 3), cells.text("cannot_judge")
    if level is None:
        raise ValueError("expert_level is empty")
    if (value is None) != (reason in CANNOT_JUDGE_REASONS) or (reason and reason not in CANNOT_JUDGE_REASONS):
        raise ValueError(f"rating is {cells.text('rating')!r} and cannot_judge is {reason!r}: one of them must stand")
    return {
        "value": value,
        "cannot_judge": reason,
        "defects": _codes(cells.text("defects")),
        "comment": cells.short("comment", MAX_COMMENT),
        "expert_level": level,
        "protocol_version": cells.whole("protocol_version", 1, _MAX_VERSION) or 1,
        "is_simulated": bool(cells.flag("simulated")),
        "active_ms": cells.whole("active_ms", 0, 2**31 - 1),
        "display": _display(cells),
        **{name: cells.moment(name) for name in ("shown_at", "first_input_at", "answered_at", "submitted_at")},
    }


def _codes(text: str) -> list[str]:
    codes = text.split(";") if text else []
    if wrong := [code for code in codes if not _CODE.fullmatch(code)]:
        raise ValueError(f"defects: {', '.join(map(repr, wrong))}: codes are of a-z, 0-9, _ and -")
    return codes


def _finite(text: str) -> float:
    """JSON knows neither infinities nor NaN."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _display(cells: _Cells) -> dict[str, Any]:
    numbers = {"viewport_width": int, "viewport_height": int} | dict.fromkeys(
        ("device_pixel_ratio", "window_width", "window_center", "zoom"), _finite
    )
    found = {name: cells.read(name, convert) for name, convert in numbers.items()}
    found["window_unit"] = cells.text("window_unit") or None
    found |= {name: cells.flag(name) for name in ("inverted", "window_touched", "zoom_touched")}
    return {name: value for name, value in found.items() if value is not None}


def _place(cells: _Cells) -> dict[str, Any]:
    position = cells.whole("position", 0, 2**31 - 1)
    if position is None:
        raise ValueError("position is empty")
    return {
        "kind": cells.choice("assignment_kind", Assignment.Kind.values, Assignment.Kind.MAIN.value),
        "occurrence": cells.whole("occurrence", 1, 100) or 1,
        "block": cells.whole("block", 0, 2**31 - 1) or 0,
        "position": position,
    }


def _image(cells: _Cells) -> dict[str, Any]:
    sha256 = cells.text("image_sha256")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"image_sha256 is {sha256!r}, not 64 hexadecimal digits")
    public_id = cells.read("image_uuid", uuid.UUID)
    if public_id is None:
        raise ValueError("image_uuid is empty")
    return {
        "public_id": public_id,
        "sha256": sha256,
        "is_real": bool(cells.flag("is_real")),
        "patient": cells.short("patient", 100),
        "is_phantom": bool(cells.flag("phantom")),
        "model_name": cells.short("checkpoint", 500),
        "weights_sha256": cells.short("weights_sha256", 64),
        "seed": cells.whole("seed", -(2**63), 2**63 - 1),
    }
