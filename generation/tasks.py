"""Celery's side of generation: a few lines a task, each takes a primary key."""

from generation.models import GenerationJob, Redrawing, ReleaseComparison
from medsyn.celery import app, worker_is_leaving
from medsyn.jobs import execute, sweep


@app.task(name="generation.run_generation_job")
def run_generation_job(pk: int) -> None:
    from generation import engine

    execute(GenerationJob, pk, engine.run, should_stop=worker_is_leaving)


@app.task(name="generation.run_comparison")
def run_comparison(pk: int) -> None:
    from generation import engine

    execute(ReleaseComparison, pk, engine.run_comparison, should_stop=worker_is_leaving)


@app.task(name="generation.run_redrawing")
def run_redrawing(pk: int) -> None:
    from generation import engine

    execute(Redrawing, pk, engine.run_redrawing, should_stop=worker_is_leaving)


@app.task(name="generation.sweep_generation_jobs")
def sweep_generation_jobs() -> None:
    sweep(GenerationJob, run_generation_job.delay)
    sweep(Redrawing, run_redrawing.delay)
    sweep(ReleaseComparison, run_comparison.delay)
