"""Celery's side of training: a few lines a task, each takes a primary key."""

from medsyn.celery import app, worker_is_leaving
from medsyn.jobs import execute, sweep
from training.models import TrainingRun


@app.task(name="training.run_training")
def run_training(pk: int) -> None:
    from training import runner

    execute(TrainingRun, pk, runner.run, should_stop=worker_is_leaving)


@app.task(name="training.sweep_training_runs")
def sweep_training_runs() -> None:
    sweep(TrainingRun, run_training.delay)
