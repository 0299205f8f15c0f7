"""manage.py set_gold: which images have a known grade, and why."""

import csv
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from generation.models import GeneratedImage
from ratings.csv_schema import GRADES
from ratings.services import StudyError, set_gold

_REQUIRED, _OPTIONAL = ("image", "grade"), ("rationale",)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Gold:
    """A good row."""

    line: int  # of the CSV, from 1
    images: tuple[GeneratedImage, ...]  # more than one where a file was imported with several texts
    grade: int  # 1 to 3
    rationale: str


class Command(BaseCommand):
    help = (
        "Record known grades from a CSV with the columns image,grade and if wanted rationale, which readers see in "
        "the training round. An image is named by its id, by its sha256 or by the file that it was imported from. "
        "Nothing is recorded if any row is bad."
    )

    def add_arguments(self, parser):
        parser.add_argument("csv", type=Path, help="image,grade,rationale; paths are relative to the CSV's folder")
        parser.add_argument("--by", metavar="USER", help="account that vouches for the grades")

    def handle(self, *, by, **options):
        path = options["csv"]
        person = get_user_model().objects.filter(username=by).first() if by else None
        if by and person is None:
            raise CommandError(f"There is no account {by!r}.")
        rows, faults = self._read(path)
        if faults:
            raise CommandError(_told(path, faults))
        with transaction.atomic():
            faults = self._store(rows, person)
            if faults:
                raise CommandError(_told(path, faults))  # rolls back what the other rows have set
        self.stdout.write(f"{sum(len(row.images) for row in rows)} images have a known grade by {path}.")

    def _read(self, path: Path) -> tuple[list[_Gold], list[str]]:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{path} cannot be read: {error}") from error
        reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
        found = set(reader.fieldnames or ())
        if not set(_REQUIRED) <= found or not found <= {*_REQUIRED, *_OPTIONAL}:
            raise CommandError(f"{path}: the first line must be image,grade or image,grade,rationale.")
        rows, faults = [], []
        for record in reader:
            try:
                rows.append(self._row(record, reader.line_num, path.parent))
            except ValueError as error:
                faults.append(f"line {reader.line_num}: {error}")
        return rows, faults

    def _row(self, record: dict, line: int, folder: Path) -> _Gold:
        if None in record or None in record.values():
            raise ValueError("the number of fields is not that of the first line; quote a text that holds commas")
        grade = record["grade"].strip()
        if grade not in {str(known) for known in GRADES}:
            raise ValueError(f"the grade is {grade!r}; it must be 1 (poor), 2 (acceptable) or 3 (excellent)")
        return _Gold(line, self._images(record["image"].strip(), folder), int(grade), record.get("rationale") or "")

    def _images(self, name: str, folder: Path) -> tuple[GeneratedImage, ...]:
        from generation.importing import sha256_of_copy

        try:
            found = GeneratedImage.objects.filter(public_id=uuid.UUID(name))
        except ValueError:
            is_digest = _SHA256.fullmatch(name.lower())
            digest = name.lower() if is_digest else sha256_of_copy(folder / name)
            found = GeneratedImage.objects.filter(sha256=digest)
        images = tuple(found)
        if not images:
            raise ValueError(f"no stored image is {name!r}. Import it first (manage.py import_images).")
        return images

    @staticmethod
    def _store(rows: list[_Gold], person) -> list[str]:
        faults = []
        for row in rows:
            for image in row.images:
                try:
                    set_gold(image=image, grade=row.grade, rationale=row.rationale, set_by=person)
                except StudyError as error:
                    faults.append(f"line {row.line}: {error}")
        return faults


def _told(path: Path, faults: list[str]) -> str:
    return "\n  ".join([f"{path}: nothing was recorded.", *faults])
