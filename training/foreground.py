"""Do a run's work in this process, with a progress bar: what the commands use instead of a worker."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from medsyn.jobs import execute
from training import runner
from training.models import TrainingRun
from training.queueing import Queue
from training.tasks import queue_follow_up

POLL_SECONDS = 1


def follow(run: TrainingRun, *, is_quiet: bool = False) -> TrainingRun:
    """Work on the run until it is finished and return it; Ctrl+C hands it back to the queue.

    Where a worker was faster to claim it, its progress is shown, and its place taken should it die.
    """
    bar = tqdm(total=run.progress_total, unit=f" {run.progress_unit}", disable=is_quiet)
    with bar, _until_signal() as flag:

        def show(job: TrainingRun) -> None:
            place = Queue().standing(job)
            bar.set_description_str(place.sentence if place else "")
            bar.total = job.progress_total
            bar.update(job.progress_done - bar.n)

        def work(job: TrainingRun) -> None:
            runner.run(job, on_progress=show)

        run.refresh_from_db()
        while not run.is_finished and not flag["raised"]:
            if execute(TrainingRun, run.pk, work, should_stop=lambda: flag["raised"]):
                queue_follow_up(run.pk)
            else:
                time.sleep(POLL_SECONDS)
            run.refresh_from_db()
            show(run)
    return run


@contextmanager
def _until_signal() -> Iterator[dict[str, bool]]:
    """Turn Ctrl+C and SIGTERM into a flag while the block runs."""
    flag = {"raised": False}

    def raise_flag(*_) -> None:
        flag["raised"] = True

    before = {number: signal.signal(number, raise_flag) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
