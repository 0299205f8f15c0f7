"""The tasks of generation: delivered twice, a job runs once; what the broker lost is rung again."""

from datetime import timedelta

import pytest
from django.utils import timezone

from generation import engine, tasks
from generation.models import GenerationJob
from generation.services import start_generation
from medsyn.celery import app

pytestmark = pytest.mark.django_db
PROMPT = "Chest X-ray: normal lung fields"


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """The jobs that reached the engine."""
    keys: list[int] = []
    monkeypatch.setattr(engine, "run", lambda job: keys.append(job.pk))
    return keys


def test_delivered_twice_a_job_runs_once(alice, enqueued, runs):
    job = start_generation(prompts=[PROMPT], user=alice)
    tasks.run_generation_job(job.pk)
    tasks.run_generation_job(job.pk)
    assert runs == [job.pk]
    job.refresh_from_db()
    assert (job.state, job.attempt) == ("succeeded", 1)


def test_a_job_that_is_gone_is_nothing_to_do(runs):
    tasks.run_generation_job(12345)
    assert runs == []


def test_the_sweep_rings_for_queued_and_abandoned_jobs_only(alice, enqueued):
    jobs = {state: start_generation(prompts=[PROMPT], user=alice) for state in GenerationJob.State.values}
    abandoned = start_generation(prompts=[PROMPT], user=alice)
    now = timezone.now()
    for state, job in jobs.items():
        GenerationJob.objects.filter(pk=job.pk).update(state=state, heartbeat_at=now)
    GenerationJob.objects.filter(pk=abandoned.pk).update(state="running", heartbeat_at=now - timedelta(hours=1))
    enqueued.clear()
    tasks.sweep_generation_jobs()
    tasks.sweep_generation_jobs()
    assert enqueued == [jobs["queued"].pk, abandoned.pk] * 2


def test_the_tasks_go_by_their_names_to_their_queue():
    names = {"generation.run_generation_job", "generation.sweep_generation_jobs"}
    assert names <= set(app.tasks)
    for name in names:
        assert app.amqp.router.route({}, name)["queue"].name == "generation"
