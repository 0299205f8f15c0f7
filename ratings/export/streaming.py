"""Rows of the database to a CSV file at the speed of the database's own writer, hashed on their way to the disk.

PostgreSQL formats the rows itself (COPY ... TO STDOUT); of SQLite the raw cursor goes into csv.writer. Nothing is
done in Python for a single cell, and no more than a few dozen rows are in memory.

The lines of both are the same bytes: they end in CR LF (RFC 4180), fields are quoted where they hold a comma, a
quote, CR or LF, and no query yields an empty text, which COPY alone would quote, but NULL.
"""

import contextlib
import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.db import connection
from django.db.models import QuerySet

_ROWS_AT_ONCE = 50  # more leave the processor's cache: 500 take a tenth longer
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class WrittenFile:
    """A CSV that was written."""

    sha256: str  # of its bytes
    row_count: int  # without the header


class _HashedFile(io.RawIOBase):
    """A new file whose bytes are hashed as they pass."""

    def __init__(self, path: Path):
        self._file = path.open("wb", buffering=0)
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content) -> int:
        written = self._file.write(content)
        self.digest.update(memoryview(content)[:written])
        return written

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._file.close()


class CsvFile:
    """A CSV being written; see ``new_csv``."""

    def __init__(self, hashed: _HashedFile):
        self._hashed = hashed
        self._bytes = io.BufferedWriter(hashed, _BUFFER_BYTES)
        self._text = io.TextIOWrapper(self._bytes, encoding="utf-8", newline="")
        self._writer = csv.writer(self._text)
        self._row_count = 0

    def write_header(self, names: Sequence[str]) -> None:
        self._writer.writerow(names)

    def write_rows(self, rows: Iterable[Sequence]) -> None:
        for row in rows:
            self._writer.writerow(row)
            self._row_count += 1

    def write_query(self, query: QuerySet) -> None:
        """Append the rows of a ``values_list`` query, all of whose cells are integers, non-empty texts or NULL."""
        sql, parameters = query.query.sql_with_params()
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                self._copy(cursor, sql, parameters)
            else:
                self._fetch(cursor, sql, parameters)

    def _copy(self, cursor, sql: str, parameters: tuple) -> None:
        self._text.flush()
        write, number = self._bytes.write, 0
        with cursor.copy(f"COPY ({sql}) TO STDOUT WITH (FORMAT csv)", parameters) as copied:
            for number, line in enumerate(copied, start=1):  # noqa: B007 (libpq hands out whole lines, one a time)
                write(line[:-1])
                write(b"\r\n")
        self._row_count += number

    def _fetch(self, cursor, sql: str, parameters: tuple) -> None:
        cursor.execute(sql, parameters)
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            self._writer.writerows(rows)
            self._row_count += len(rows)

    def close(self) -> None:
        self._text.close()

    @property
    def written(self) -> WrittenFile:
        """What the file holds, once it is closed."""
        return WrittenFile(sha256=self._hashed.digest.hexdigest(), row_count=self._row_count)


@contextlib.contextmanager
def new_csv(path: Path, header: Sequence[str]) -> Iterator[CsvFile]:
    """A CSV file at ``path``, begun with its header, closed when the block ends."""
    file = CsvFile(_HashedFile(path))
    with contextlib.closing(file):
        file.write_header(header)
        yield file
