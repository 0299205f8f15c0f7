"""Celery's side of training: a few lines a task, each takes a primary key."""

import logging

from medsyn.celery import app, worker_is_leaving
from medsyn.jobs import execute, sweep
from training.models import ReadingBatch, TrainingRun

logger = logging.getLogger(__name__)


@app.task(name="training.run_training")
def run_training(pk: int) -> None:
    """A doorbell: of this run and those that have waited longer, the first that this worker's device is free for."""
    from training import runner

    ahead = TrainingRun.objects.waiting().ahead_of(pk).values_list("pk", flat=True)
    for key in [*ahead, pk]:
        if execute(TrainingRun, key, runner.run, should_stop=worker_is_leaving):
            queue_follow_up(key)
            ring_for_next()
            return


@app.task(name="training.queue_follow_up")
def queue_follow_up(pk: int) -> None:
    """Queue what a run asks for that has succeeded: called by whoever has worked on it, once it let go of it.

    Where that worker dies in between, the sweep sends this as a task. However often it is called, one update follows.
    """
    from training import services

    try:
        services.follow_up(run=TrainingRun.objects.get(pk=pk))
    except services.TrainingError as error:
        logger.error("Run %s: its generator's update could not be queued: %s", pk, error)


def ring_for_next() -> None:
    """The device is free: whoever waits longest need not wait for the sweep."""
    waiting = TrainingRun.objects.waiting().first()
    if waiting is not None:
        run_training.delay(waiting.pk)


@app.task(name="training.choose_reading_batch")
def choose_reading_batch(pk: int) -> None:
    from training.reading import choice as reading_choice

    execute(ReadingBatch, pk, reading_choice.run, should_stop=worker_is_leaving)


@app.task(name="training.sweep_training_runs")
def sweep_training_runs() -> None:
    TrainingRun.objects.hand_back()
    sweep(TrainingRun, run_training.delay)
    sweep(ReadingBatch, choose_reading_batch.delay)
    for pk in TrainingRun.objects.lacking_their_update().order_by("pk").values_list("pk", flat=True):
        queue_follow_up.delay(pk)
