"""A MedSyn of its own for tests that start its real processes: a state folder, a database, commands, workers."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from django.db import connection

from training.run_directory import RunDirectory, RunDirectoryBusy

ROOT = Path(__file__).resolve().parent.parent
DATABASE = "medsyn.sqlite3"  # in the state folder


def environment_of(state: Path, **variables: str) -> dict[str, str]:
    """The environment of its processes, which know nothing of the tests' database."""
    given = {name: value for name, value in os.environ.items() if name != "MEDSYN_DATABASE_URL"}
    return {**given, "DJANGO_SETTINGS_MODULE": "medsyn.settings", "MEDSYN_VAR_DIR": str(state), **variables}


def copy_tests_database(state: Path) -> Path:
    """The tests' own migrated database, as it is now, for a house of its own: migrating once more takes seconds.

    For tests that ask for the fixture db, on SQLite.
    """
    assert connection.vendor == "sqlite", "only a file can be copied"
    state.mkdir(parents=True, exist_ok=True)
    target = state / DATABASE
    with closing(sqlite3.connect(connection.settings_dict["NAME"])) as own, closing(sqlite3.connect(target)) as copy:
        own.backup(copy)
    return target


def manage(environment: dict[str, str], *arguments: str) -> str:
    """What a management command said; it must succeed."""
    command = [sys.executable, "manage.py", *arguments]
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def start_worker(environment: dict[str, str], queues: str, *flags: str) -> subprocess.Popen:
    """A Celery worker in a process group of its own."""
    command = [sys.executable, "-m", "celery", "--app", "medsyn.celery", "worker", "--pool", "solo"]
    command += ["--queues", queues, "--loglevel", "WARNING", "--without-gossip", "--without-mingle", *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 180) -> None:
    """Fail where the condition does not hold within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def is_free(directory: RunDirectory) -> bool:
    """Whether no training process holds the run's directory."""
    try:
        with directory.lock():
            return True
    except RunDirectoryBusy:
        return False
