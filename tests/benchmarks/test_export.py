"""How fast and in how much memory a million ratings leave, against what the databases do by themselves:

.venv/bin/python -m pytest tests/benchmarks/test_export.py -m benchmark -s -n0

The reference is the same two queries (five columns, tidy table) without this application: COPY ... TO STDOUT into a
file on PostgreSQL, a raw sqlite3 cursor into csv.writer on SQLite. Both ways take turns in one run; ours also hashes.
"""

import csv
import os
import resource
import time
from pathlib import Path

import pytest
from django.db import connection

from ratings.export import RATINGS_COLUMNS, TIDY_COLUMNS
from ratings.export.selection import Selection
from ratings.models import Export, Study
from ratings.services import freeze_export
from tests.ratings.many_ratings import fill

pytestmark = pytest.mark.benchmark

READERS = 50
NUM_RATINGS = int(os.environ.get("MEDSYN_BENCHMARK_RATINGS", "1000000"))
MOST_TIMES = 1.2  # the reference's time, of the faster of two turns each
MOST_GROWTH = 24 * 2**20  # bytes of peak memory from a tenth of the rows to all of them
TURNS = 2


def queries_of(export: Export) -> list[tuple[str, tuple]]:
    """SQL and parameters of the two tables of an export."""
    selection = Selection(
        study=export.study, modality="", include_simulated=False, last_event=export.last_event,
        as_of=export.created_at, image_root=export.filters["image_root"],
    )  # fmt: skip
    five = selection.table(selection.trainable(), RATINGS_COLUMNS, is_spreadsheet=False)
    tidy = selection.table(selection.answered(), TIDY_COLUMNS, is_spreadsheet=True)
    return [query.query.sql_with_params() for query in (five, tidy)]


def reference(export: Export, folder: Path) -> float:
    """Seconds of the database's own writer."""
    started = time.perf_counter()
    for number, (sql, parameters) in enumerate(queries_of(export)):
        if connection.vendor == "postgresql":
            with (folder / f"{number}.csv").open("wb") as file, connection.connection.cursor() as cursor:
                with cursor.copy(f"COPY ({sql}) TO STDOUT WITH (FORMAT csv, HEADER)", parameters) as copied:
                    for chunk in copied:
                        file.write(chunk)
        else:
            with (folder / f"{number}.csv").open("w", newline="", encoding="utf-8") as file:
                cursor = connection.connection.cursor()
                cursor.execute(sql.replace("%s", "?"), [_plain(value) for value in parameters])
                csv.writer(file).writerows(cursor)
    return time.perf_counter() - started


def _plain(value):
    """A parameter as sqlite3 takes it."""
    return str(value) if hasattr(value, "isoformat") else value


def ours(study: Study) -> tuple[float, Export]:
    started = time.perf_counter()
    export = freeze_export(study=study)
    return time.perf_counter() - started, export


def peak_bytes() -> int:
    """Most memory this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def analyse() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def test_a_million_ratings(db, tmp_path):
    tenth, whole = (Study.objects.create(name=name, order_seed=1) for name in ("Tenth", "Whole"))
    fill(tenth, READERS, NUM_RATINGS // READERS // 10)
    analyse()
    ours(tenth)
    peak_of_tenth = peak_bytes()
    fill(whole, READERS, NUM_RATINGS // READERS)
    analyse()
    _, export = ours(whole)
    growth = peak_bytes() - peak_of_tenth
    assert export.row_count == NUM_RATINGS // READERS * READERS
    size = sum(export.path_of(name).stat().st_size for name in export.files)
    turns = [(reference(export, tmp_path), ours(whole)[0]) for _ in range(TURNS)]
    raw, own = (min(times) for times in zip(*turns, strict=True))
    print(
        f"\n{connection.vendor}, {export.row_count} ratings, {size / 2**20:.0f} MiB: ours {own:.1f} s, the database's "
        f"own writer {raw:.1f} s, ratio {own / raw:.2f}; peak memory {peak_of_tenth / 2**20:.0f} MiB after a tenth, "
        f"{growth / 2**20:+.0f} MiB for all; turns {turns}"
    )
    assert growth < MOST_GROWTH
    assert own / raw < MOST_TIMES


@pytest.mark.postgres
def test_a_million_ratings_on_postgresql(run_on_postgres):
    run_on_postgres(f"{__file__}::test_a_million_ratings", "-m", "benchmark", "-s", "-n0")
