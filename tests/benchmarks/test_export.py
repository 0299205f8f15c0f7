"""How fast and in how much memory a million ratings leave, against what the databases do by themselves:

.venv/bin/python -m pytest tests/benchmarks/test_export.py -m benchmark -s -n0

The reference is the same two queries (five columns, tidy table) without this application: COPY ... TO STDOUT into a
file on PostgreSQL, a raw sqlite3 cursor into csv.writer on SQLite. Both ways take turns in one run; ours also hashes.
"""

import csv
import gc
import os
import time
from collections.abc import Callable
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
MOST_TIMES = 1.2  # the reference's time: of PostgreSQL as it passed, of SQLite as it was computed; best of the turns
MOST_GROWTH = 8 * 2**20  # bytes that all rows may take more than a tenth of them
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


def reference(export: Export, folder: Path) -> None:
    """The same tables by the database's own writer."""
    for number, (sql, parameters) in enumerate(queries_of(export)):
        if connection.vendor == "postgresql":
            with (
                (folder / f"{number}.csv").open("wb") as file,
                connection.connection.cursor() as cursor,
                cursor.copy(f"COPY ({sql}) TO STDOUT WITH (FORMAT csv, HEADER)", parameters) as copied,
            ):
                for chunk in copied:
                    file.write(chunk)
        else:
            with (folder / f"{number}.csv").open("w", newline="", encoding="utf-8") as file:
                cursor = connection.connection.cursor()
                cursor.execute(sql.replace("%s", "?"), [_plain(value) for value in parameters])
                csv.writer(file).writerows(cursor)


def _plain(value):
    """A parameter as sqlite3 takes it."""
    return str(value) if hasattr(value, "isoformat") else value


def seconds_of(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds that passed, and those that this process computed: of SQLite, which is within it, the second figure is
    hardly disturbed by others on the machine."""
    started, computed = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - started, time.process_time() - computed


def memory_of(call: Callable[[], Export]) -> tuple[Export, int]:
    """What ``call`` returns, and by how many bytes this process was larger at its largest meanwhile."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    export = call()
    return export, _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def analyse() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def test_a_million_ratings(db, tmp_path):
    tenth, whole = (Study.objects.create(name=name, order_seed=1) for name in ("Tenth", "Whole"))
    fill(tenth, READERS, NUM_RATINGS // READERS // 10)
    analyse()
    freeze_export(study=tenth)  # what is loaded once is loaded now
    _, memory_of_tenth = memory_of(lambda: freeze_export(study=tenth))
    fill(whole, READERS, NUM_RATINGS // READERS)
    analyse()
    export, memory_of_whole = memory_of(lambda: freeze_export(study=whole))
    assert export.row_count == NUM_RATINGS // READERS * READERS
    size = sum(export.path_of(name).stat().st_size for name in export.files)
    turns = [
        (seconds_of(lambda: reference(export, tmp_path)), seconds_of(lambda: freeze_export(study=whole)))
        for _ in range(TURNS)
    ]
    clock = 1 if connection.vendor == "sqlite" else 0
    raw, own = (min(seconds[clock] for seconds in each) for each in zip(*turns, strict=True))
    print(
        f"\n{connection.vendor}, {export.row_count} ratings, {size / 2**20:.0f} MiB: ours {own:.1f} s, the "
        f"database's own writer {raw:.1f} s, ratio {own / raw:.2f}; more memory while exporting: "
        f"{memory_of_tenth / 2**20:.1f} MiB for a tenth, {memory_of_whole / 2**20:.1f} MiB for all; turns {turns}"
    )
    assert memory_of_whole < memory_of_tenth + MOST_GROWTH
    assert own / raw < MOST_TIMES


@pytest.mark.postgres
def test_a_million_ratings_on_postgresql(run_on_postgres):
    run_on_postgres(f"{__file__}::test_a_million_ratings", "-m", "benchmark", "-s", "-n0")
