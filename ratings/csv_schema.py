"""The ratings CSV: the one module that writes AND reads it. Standard library only.

Exactly five columns, ``image_path,rating,modality,expert_level,prompt``, one row per rating, quoted by the csv
module (RFC 4180). Training needs only these five.

Beside ratings.csv an export carries the tidy table, ratings_tidy.csv: every rating that counts, of every kind, with
its reader, the image's seed, patient and known grade (docs/exports.md). The database writes it
(ratings.export.columns); here is what reads it. Its trainable rows are those of ratings.csv, in the same order.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from medsyn.modalities import PromptError, UnknownModality, canonical_modality, parse_prompt

COLUMNS = ("image_path", "rating", "modality", "expert_level", "prompt")
GRADES = {1: "Poor", 2: "Acceptable", 3: "Excellent"}
EXPERT_LEVELS = (1, 2, 3)
TIDY_NAME = "{stem}_tidy.csv"  # beside "{stem}.csv"
TRAINABLE_KINDS = ("main", "gold")  # places whose first showing may train: ratings.models.Assignment.TRAINABLE
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets run a cell that begins so
_TIDY_COLUMNS = (*COLUMNS, "state", "reader", "image_sha256", "patient", "seed", "gold_grade", "assignment_kind",
                 "occurrence")  # fmt: skip
_SUBMITTED = "submitted"  # of "state": the reader gave a grade
_MAX_FAULTS_SHOWN = 20


class RatingsCSVError(ValueError):
    """The file breaks the contract; ``faults`` has one sentence per row, with its line number."""

    def __init__(self, source: str, faults: list[str]):
        self.faults = faults
        shown = "\n  ".join(faults[:_MAX_FAULTS_SHOWN])
        rest = len(faults) - _MAX_FAULTS_SHOWN
        super().__init__(f"{source}:\n  {shown}" + (f"\n  and {rest} more." if rest > 0 else ""))


@dataclass(frozen=True, slots=True)
class RatingRow:
    """One rating."""

    image_path: str  # relative to the CSV's folder, or absolute
    rating: int  # 1 poor, 2 acceptable, 3 excellent
    modality: str  # one of medsyn.modalities.MODALITIES
    expert_level: int  # 1 to 3, as it was when the rating was given
    prompt: str  # "{kind}: {description}"
    line: int = field(default=0, compare=False)  # where the record ended in the file it was read from; 0: in none

    def resolve(self, folder: Path) -> Path:
        """The image's path, for a CSV that lies in ``folder``."""
        return folder / self.image_path


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that breaks the contract."""

    line: int  # where the record ended
    reason: str


def write_ratings(file: TextIO, rows: Iterable[RatingRow]) -> int:
    """Stream rows to a text file opened with ``newline=""``; return how many."""
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    count = 0
    for row in rows:
        writer.writerow((row.image_path, row.rating, row.modality, row.expert_level, row.prompt))
        count += 1
    return count


def _integer(record: dict, column: str, allowed: Iterable[int]) -> int:
    text = record[column].strip()
    allowed = tuple(allowed)
    if text not in {str(value) for value in allowed}:
        raise ValueError(f"{column} is {text!r}, not one of {', '.join(map(str, allowed))}")
    return int(text)


def _parse(record: dict, line: int) -> RatingRow:
    if None in record:
        raise ValueError(f"more than {len(COLUMNS)} fields; quote the text that holds commas")
    if None in record.values():
        raise ValueError(f"fewer than {len(COLUMNS)} fields")
    image_path = record["image_path"].strip()
    if not image_path:
        raise ValueError("image_path is empty")
    prompt = parse_prompt(record["prompt"])
    modality = canonical_modality(record["modality"])
    if modality != prompt.modality:
        raise ValueError(f"modality is {modality} but the prompt begins with {prompt.kind.prefix!r}")
    return RatingRow(
        image_path=image_path,
        rating=_integer(record, "rating", GRADES),
        modality=modality,
        expert_level=_integer(record, "expert_level", EXPERT_LEVELS),
        prompt=prompt.text,
        line=line,
    )


def scan_ratings(file: TextIO, source: str) -> Iterator[RatingRow | Fault]:
    """Yield every row of ``source``, good and broken ones, in order. A missing or unknown column raises
    RatingsCSVError before the first."""
    reader = csv.DictReader(file, strict=True)
    found = tuple(reader.fieldnames or ())
    if set(found) != set(COLUMNS) or len(found) != len(COLUMNS):
        raise RatingsCSVError(
            source, [f"line 1: columns are {', '.join(found) or 'missing'}; they must be {','.join(COLUMNS)}"]
        )
    try:
        for record in reader:
            try:
                yield _parse(record, reader.line_num)
            except (ValueError, PromptError, UnknownModality) as error:
                yield Fault(reader.line_num, str(error))
    except csv.Error as error:
        yield Fault(reader.line_num, str(error))


def read_ratings(file: TextIO, source: str) -> Iterator[RatingRow]:
    """Yield rows; after the last one raise RatingsCSVError that lists every broken row of ``source``.

    A missing or unknown column is raised before the first row. Callers that must not act on a broken file take
    ``list(read_ratings(...))``.
    """
    faults = []
    for row in scan_ratings(file, source):
        if isinstance(row, Fault):
            faults.append(f"line {row.line}: {row.reason}")
        else:
            yield row
    if faults:
        raise RatingsCSVError(source, faults)


def read_ratings_file(path: Path) -> list[RatingRow]:
    """All rows of a file; raises FileNotFoundError or RatingsCSVError (bytes that are not UTF-8 included)."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            return list(read_ratings(file, str(path)))
        except UnicodeDecodeError as error:
            raise RatingsCSVError(str(path), [f"byte {error.start}: not UTF-8. Save the file as UTF-8."]) from None


@dataclass(frozen=True, slots=True)
class TidyRow:
    """What the tidy table says of one rating, or of one image that its reader could not judge."""

    rating: RatingRow | None  # as in the five columns, its line that of the tidy table; None: not judged
    reader: str  # pseudonym, stable within the study
    image_sha256: str  # of the file's bytes when it was rated
    prompt: str
    patient: str  # pseudonym; "": none is known
    seed: int | None  # of the generated image; None: imported
    gold_grade: int  # the grade the image is known to have, 1 to 3; 0: not known
    assignment_kind: str  # main, repeat, calibration, gold, real or training
    occurrence: int  # 1: first showing to this reader
    line: int  # where the record ended

    @property
    def is_trainable(self) -> bool:
        """Whether a selector may learn from it: ratings.csv holds exactly these rows."""
        return self.rating is not None and self.role in TRAINABLE_KINDS

    @property
    def role(self) -> str:
        """The kind of its place; every later showing is a repeat."""
        return "repeat" if self.occurrence > 1 else self.assignment_kind


def tidy_path(ratings_file: Path) -> Path:
    """Where the tidy table of a ratings CSV lies, if it has one."""
    return ratings_file.with_name(TIDY_NAME.format(stem=ratings_file.stem))


def formula_unsafe(cell: str) -> str:
    """The text of a cell that was written formula-safe: without the apostrophe in front."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA_STARTS) else cell


def read_tidy_file(path: Path) -> list[TidyRow]:
    """All rows of a tidy table; raises FileNotFoundError, or RatingsCSVError with every broken row and its line.

    Columns that training has no use for may be missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _read_tidy(file, str(path))
    except UnicodeDecodeError as error:
        raise RatingsCSVError(str(path), [f"byte {error.start}: not UTF-8. Save the file as UTF-8."]) from None


def _read_tidy(file: TextIO, source: str) -> list[TidyRow]:
    reader = csv.DictReader(file, strict=True)
    missing = [name for name in _TIDY_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise RatingsCSVError(source, [f"line 1: columns missing: {', '.join(missing)}. Export the ratings again"])
    rows, faults = [], []
    try:
        for record in reader:
            try:
                rows.append(_parse_tidy(record, reader.line_num))
            except (ValueError, PromptError, UnknownModality) as error:
                faults.append(f"line {reader.line_num}: {error}")
    except csv.Error as error:
        faults.append(f"line {reader.line_num}: {error}")
    if faults:
        raise RatingsCSVError(source, faults)
    return rows


def _parse_tidy(record: dict, line: int) -> TidyRow:
    if None in record or None in record.values():
        raise ValueError("more or fewer fields than columns")
    record = {name: formula_unsafe(record[name]) for name in _TIDY_COLUMNS}
    if not record["reader"] or not record["image_sha256"]:
        raise ValueError("reader or image_sha256 is empty")
    is_rated = record["state"] == _SUBMITTED
    return TidyRow(
        rating=_parse({name: record[name] for name in COLUMNS}, line) if is_rated else None,
        reader=record["reader"],
        image_sha256=record["image_sha256"],
        prompt=parse_prompt(record["prompt"]).text,
        patient=record["patient"],
        seed=int(record["seed"]) if record["seed"] else None,
        gold_grade=_integer(record, "gold_grade", GRADES) if record["gold_grade"] else 0,
        assignment_kind=record["assignment_kind"],
        occurrence=int(record["occurrence"]),
        line=line,
    )
