"""Rows of a tidy table that say the same, or contradict each other."""

import hashlib
import sqlite3
from typing import Self

from ratings.importing.rows import ImportedRow


class Showings:
    """Which showing of which image to which reader has been met, and on which line: in a temporary file, for memory
    shall not grow with the rows."""

    def __init__(self):
        self._index = sqlite3.connect("")  # private, on the disk, gone when closed
        self._index.execute("PRAGMA journal_mode=OFF")
        self._index.execute(
            "CREATE TABLE met (key TEXT PRIMARY KEY, line INTEGER NOT NULL, answer BLOB NOT NULL) WITHOUT ROWID"
        )
        self._study = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        self._index.close()

    def is_known(self, row: ImportedRow) -> bool:
        """Whether an earlier line says exactly the same; ValueError where one contradicts this row."""
        if not row.reader:
            return False  # five columns: equal rows are the ratings of several readers
        self._study = self._study or row.study
        if row.study != self._study:
            raise ValueError(
                f"study_uuid is {row.study}, the file's first is {self._study}: import one study at a time"
            )
        said = repr((row.image_path, row.prompt, row.answer, row.rating, row.place, row.image, row.gold_grade))
        answer = hashlib.sha256(said.encode()).digest()
        showing = f"{row.reader}/{row.image['public_id']}/{row.place['occurrence']}"
        if not self._add(showing, row.line, answer):
            line, before = self._index.execute("SELECT line, answer FROM met WHERE key = ?", (showing,)).fetchone()
            if before == answer:
                return True
            raise ValueError(f"line {line} has another answer of reader {row.reader} to the same showing")
        place = f"{row.reader} at {row.place['position']}"
        if not self._add(place, row.line, answer):
            raise ValueError(f"position {row.place['position']} of reader {row.reader} is taken by an earlier line")
        return False

    def _add(self, key: str, line: int, answer: bytes) -> bool:
        """Whether the key is new."""
        added = self._index.execute("INSERT OR IGNORE INTO met VALUES (?, ?, ?)", (key, line, answer))
        return added.rowcount == 1
