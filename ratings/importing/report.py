"""What became of each row of an imported file."""

import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from medsyn.artifacts import atomic_path

COLUMNS = ("line", "status", "reason")
FINE, KNOWN, REFUSED = "imported", "known already", "refused"
_NOT_STORED = "not imported"
_MAX_FAULTS = 1000  # kept in memory; the report has them all


class RowReport:
    """One verdict per row in the file's order, on the disk, so that a file of any length can be reported on."""

    def __init__(self):
        self._spool = tempfile.TemporaryFile("w+", newline="", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._writer = csv.writer(self._spool)
        self.num_refused = 0
        self.num_fine = 0
        self.faults: list[str] = []  # the first of them, one sentence each

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        self._spool.close()

    def add(self, line: int, status: str, reason: str = "") -> None:
        self._writer.writerow((line, status, reason))
        self.num_fine += status == FINE
        if status == REFUSED:
            self.num_refused += 1
            if len(self.faults) < _MAX_FAULTS:
                self.faults.append(f"line {line}: {reason}")

    def statuses(self) -> Iterator[str]:
        """The verdicts again, in order."""
        self._spool.seek(0)
        for _, status, _ in csv.reader(self._spool):
            yield status

    def write(self, path: Path, *, is_stored: bool) -> None:
        """A CSV of COLUMNS; without ``is_stored`` rows that were fine were not imported for the others' sake."""
        self._spool.seek(0)
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for line, status, reason in csv.reader(self._spool):
                if status == FINE and not is_stored:
                    status, reason = _NOT_STORED, "other rows of the file were refused"
                writer.writerow((line, status, reason))
