"""Claims, heartbeats, cancellation and the sweep, on real rows."""

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from generation.models import GenerationJob
from medsyn.jobs import JobError, JobLost, execute, sweep

State = GenerationJob.State


@pytest.fixture
def job(db):
    return GenerationJob.objects.create(seed=1)


def make_stale(job):
    """As if its worker had died: the heartbeat is older than any lease."""
    GenerationJob.objects.filter(pk=job.pk).update(heartbeat_at=timezone.now() - timedelta(days=1))


def test_work_runs_once_however_often_it_is_delivered(transactional_db):
    job = GenerationJob.objects.create(seed=1)
    calls = []
    assert execute(GenerationJob, job.pk, calls.append) is True
    assert execute(GenerationJob, job.pk, calls.append) is False
    job.refresh_from_db()
    assert (len(calls), job.state, job.attempt) == (1, State.SUCCEEDED, 1)
    assert job.finished_at is not None


def test_a_running_job_is_not_claimed_while_its_worker_lives(job):
    assert GenerationJob.claim(job.pk) is not None
    assert GenerationJob.claim(job.pk) is None


def test_a_dead_workers_job_is_claimed_and_the_dead_can_write_nothing(job):
    first = GenerationJob.claim(job.pk)
    make_stale(job)
    second = GenerationJob.claim(job.pk)
    assert second.attempt == 2
    with pytest.raises(JobLost):
        first.report(1, 2, "images")
    second.report(1, 2, "images")
    job.refresh_from_db()
    assert (job.progress_done, job.attempt) == (1, 2)


def test_a_lost_job_is_left_to_its_new_owner(transactional_db):
    job = GenerationJob.objects.create(seed=1)

    def work(mine):
        make_stale(job)
        GenerationJob.claim(job.pk)
        mine.report(5, 5, "images")

    execute(GenerationJob, job.pk, work)
    job.refresh_from_db()
    assert (job.state, job.attempt, job.progress_done) == (State.RUNNING, 2, 0)


def test_an_understood_failure_goes_into_the_row(transactional_db):
    job = GenerationJob.objects.create(seed=1)

    def work(_):
        raise JobError("The disk is full. Free some space and resume the job.")

    execute(GenerationJob, job.pk, work)
    job.refresh_from_db()
    assert (job.state, job.error) == (State.FAILED, "The disk is full. Free some space and resume the job.")


def test_a_surprise_goes_into_the_row_and_up(transactional_db):
    job = GenerationJob.objects.create(seed=1)

    def work(_):
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        execute(GenerationJob, job.pk, work)
    job.refresh_from_db()
    assert (job.state, job.error) == (State.FAILED, "ZeroDivisionError: by zero")


def test_a_queued_job_is_cancelled_at_once(job):
    job.request_cancel()
    assert job.state == State.CANCELLED
    assert GenerationJob.claim(job.pk) is None


def test_a_running_job_is_cancelled_at_its_next_report(transactional_db):
    job = GenerationJob.objects.create(seed=1)
    reached = []

    def work(mine):
        GenerationJob.objects.get(pk=job.pk).request_cancel()
        mine.report(1, 2, "images")
        reached.append("behind the report")

    execute(GenerationJob, job.pk, work)
    job.refresh_from_db()
    assert (job.state, reached) == (State.CANCELLED, [])


def test_a_cancelled_job_whose_worker_died_does_not_run_again(transactional_db):
    job = GenerationJob.objects.create(seed=1)
    GenerationJob.claim(job.pk)
    GenerationJob.objects.get(pk=job.pk).request_cancel()
    make_stale(job)
    calls = []
    execute(GenerationJob, job.pk, calls.append)
    job.refresh_from_db()
    assert (job.state, calls) == (State.CANCELLED, [])


def test_a_leaving_worker_hands_its_job_back(transactional_db):
    job = GenerationJob.objects.create(seed=1)
    execute(GenerationJob, job.pk, lambda mine: mine.report(3, 9, "images"), should_stop=lambda: True)
    job.refresh_from_db()
    assert (job.state, job.progress_done) == (State.QUEUED, 3)
    execute(GenerationJob, job.pk, lambda mine: mine.report(9, 9, "images"))
    job.refresh_from_db()
    assert (job.state, job.resumed_from, job.attempt) == (State.SUCCEEDED, 3, 2)


def test_failed_and_cancelled_jobs_can_be_queued_again(job):
    job.request_cancel()
    job.requeue()
    assert GenerationJob.claim(job.pk) is not None


def test_the_heartbeat_keeps_a_silent_job_alive(transactional_db, settings):
    settings.JOB_LEASE_SECONDS = 1
    job = GenerationJob.objects.create(seed=1)
    beats = threading.Event()

    def work(mine):
        before = GenerationJob.objects.get(pk=job.pk).heartbeat_at
        for _ in range(600):
            if GenerationJob.objects.get(pk=job.pk).heartbeat_at > before:
                beats.set()
                return
            threading.Event().wait(0.1)

    execute(GenerationJob, job.pk, work)
    assert beats.is_set()


def test_one_of_many_simultaneous_claims_wins(transactional_db):
    job = GenerationJob.objects.create(seed=1)
    barrier, wins = threading.Barrier(8), []

    def contend():
        barrier.wait()
        try:
            if GenerationJob.claim(job.pk) is not None:
                wins.append(1)
        finally:
            connection.close()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1


def test_the_sweep_rings_for_queued_and_abandoned_jobs_only(db):
    queued = GenerationJob.objects.create(seed=1)
    abandoned = GenerationJob.objects.create(seed=2)
    GenerationJob.claim(abandoned.pk)
    make_stale(abandoned)
    running = GenerationJob.objects.create(seed=3)
    GenerationJob.claim(running.pk)
    finished = GenerationJob.objects.create(seed=4)
    finished.request_cancel()
    rung = []
    assert sweep(GenerationJob, rung.append) == 2
    assert rung == [queued.pk, abandoned.pk]


def test_the_remaining_time_counts_from_the_claim_not_from_the_first_attempt(job):
    GenerationJob.objects.filter(pk=job.pk).update(
        state=State.RUNNING,
        started_at=timezone.now() - timedelta(seconds=10),
        progress_done=60,
        resumed_from=50,
        progress_total=100,
    )
    job.refresh_from_db()
    assert job.eta_seconds == pytest.approx(40, abs=1)  # ten units in ten seconds, forty to go
