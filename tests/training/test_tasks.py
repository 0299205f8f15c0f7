"""Tasks take a key, run once however often they are delivered, and the sweep rings for what was forgotten."""

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.training.runs import State, make_run
from training import runner, tasks
from training.models import TrainingRun

pytestmark = pytest.mark.django_db


def test_a_run_delivered_twice_is_trained_once(monkeypatch):
    trained = []
    monkeypatch.setattr(runner, "run", trained.append)
    run = make_run()
    tasks.run_training(run.pk)
    tasks.run_training(run.pk)
    run.refresh_from_db()
    assert trained == [run]
    assert (run.state, run.attempt) == (State.SUCCEEDED, 1)


def test_the_sweep_rings_for_queued_runs_and_those_of_dead_workers(monkeypatch):
    rung = []
    monkeypatch.setattr(tasks.run_training, "delay", rung.append)
    now, long_ago = timezone.now(), timezone.now() - timedelta(days=1)
    queued = make_run()
    dead = make_run(state=State.RUNNING, heartbeat_at=long_ago)
    make_run(state=State.RUNNING, heartbeat_at=now)
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        make_run(state=state, heartbeat_at=long_ago)
    tasks.sweep_training_runs()
    tasks.sweep_training_runs()
    assert rung == 2 * [queued.pk, dead.pk]


def test_a_surprise_fails_the_run_and_reaches_the_worker(monkeypatch):
    def break_down(job):
        raise ZeroDivisionError("no ratings")

    monkeypatch.setattr(runner, "run", break_down)
    run = make_run()
    with pytest.raises(ZeroDivisionError):
        tasks.run_training(run.pk)
    run.refresh_from_db()
    assert (run.state, run.error) == (State.FAILED, "ZeroDivisionError: no ratings")
    assert TrainingRun.claim(run.pk) is None
