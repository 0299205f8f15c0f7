"""A job is a row: the one seam for long work.

The row is the truth and the broker only a doorbell. A service makes the row and enqueues its key on commit; the
task calls `execute`, which claims the row with one conditional UPDATE. Claimable is what is QUEUED, or RUNNING
with a heartbeat older than the lease (its worker died). Delivered twice, a job runs once; lost by the broker, it
is enqueued again by `sweep`. Each claim raises `attempt`; a worker that lost its claim can write nothing more,
because every update is conditional on the attempt it was given.
"""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Self

from django.conf import settings
from django.db import OperationalError, connection, models
from django.db.models import F, Q
from django.utils import timezone

logger = logging.getLogger(__name__)


class JobCancelled(Exception):
    """Somebody asked for the job to end; raised inside the work at its next report."""


class JobLost(Exception):
    """Another worker claimed the job after this one's lease ran out; raised inside the work."""


class JobInterrupted(Exception):
    """The worker is shutting down; the job goes back to the queue and resumes elsewhere."""


class JobError(Exception):
    """A failure that the person who started the job can understand and mend; its text goes into the row."""


class JobQuerySet(models.QuerySet):
    def claimable(self) -> Self:
        """Queued jobs, and running ones whose worker has been silent for longer than the lease."""
        return self.filter(Q(state=Job.State.QUEUED) | _is_abandoned())

    def abandoned(self) -> Self:
        """Running jobs whose worker has been silent for longer than the lease."""
        return self.filter(_is_abandoned())


def _is_abandoned() -> Q:
    silent_since = timezone.now() - timedelta(seconds=settings.JOB_LEASE_SECONDS)
    return Q(state=Job.State.RUNNING, heartbeat_at__lt=silent_since)


class Job(models.Model):
    class State(models.TextChoices):
        QUEUED = "queued", "Queued"
        RUNNING = "running", "Running"
        SUCCEEDED = "succeeded", "Succeeded"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    state = models.CharField(max_length=10, choices=State, default=State.QUEUED, db_index=True, editable=False)
    attempt = models.PositiveIntegerField(default=0, editable=False)  # raised by every claim
    heartbeat_at = models.DateTimeField(null=True, editable=False)
    cancel_requested = models.BooleanField(default=False, editable=False)
    progress_done = models.PositiveIntegerField(default=0, editable=False)
    progress_total = models.PositiveIntegerField(default=0, editable=False)
    progress_unit = models.CharField(max_length=20, blank=True, editable=False)  # "images", "steps", "epochs"
    resumed_from = models.PositiveIntegerField(default=0, editable=False)  # progress_done when last claimed
    error = models.TextField(blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, editable=False)
    finished_at = models.DateTimeField(null=True, editable=False)

    objects = JobQuerySet.as_manager()

    class Meta:
        abstract = True

    @property
    def is_finished(self) -> bool:
        return self.state in (self.State.SUCCEEDED, self.State.FAILED, self.State.CANCELLED)

    @property
    def eta_seconds(self) -> int | None:
        """Time left if the rest goes as fast as what is done; None before the first unit."""
        done_here = self.progress_done - self.resumed_from
        if self.state != self.State.RUNNING or not self.started_at or done_here <= 0:
            return None
        elapsed = (timezone.now() - self.started_at).total_seconds()
        return round(elapsed / done_here * max(self.progress_total - self.progress_done, 0))

    @classmethod
    def claim(cls, pk: int, **also: object) -> Self | None:
        """Take the job for this worker, or return None where there is nothing to take.

        ``also``: fields that are written in the same UPDATE.
        """
        now = timezone.now()
        claimed = (
            cls.objects.claimable()
            .filter(pk=pk)
            .update(
                state=cls.State.RUNNING,
                attempt=F("attempt") + 1,
                heartbeat_at=now,
                started_at=now,
                resumed_from=F("progress_done"),
                error="",
                **also,
            )
        )
        return cls.objects.get(pk=pk) if claimed else None

    def _update_own(self, **values) -> None:
        """Write to the row while this worker still owns it; raises JobLost otherwise."""
        owned = type(self).objects.filter(pk=self.pk, state=self.State.RUNNING, attempt=self.attempt)
        if not owned.update(**values):
            raise JobLost(f"{type(self).__name__} {self.pk} was claimed by another worker")
        for name, value in values.items():
            setattr(self, name, value)

    def heartbeat(self) -> None:
        self._update_own(heartbeat_at=timezone.now())

    @staticmethod
    def should_stop() -> bool:
        """Whether the worker is shutting down; `execute` puts the worker's own answer in its place."""
        return False

    def report(self, done: int, total: int, unit: str) -> None:
        """Record progress; raises JobCancelled or JobInterrupted once the work has to end."""
        self._update_own(progress_done=done, progress_total=total, progress_unit=unit, heartbeat_at=timezone.now())
        self.refresh_from_db(fields=["cancel_requested"])
        if self.cancel_requested:
            raise JobCancelled
        if self.should_stop():
            raise JobInterrupted

    def _finish(self, state: "Job.State", error: str = "") -> None:
        self._update_own(state=state, error=error, finished_at=timezone.now())

    def request_cancel(self) -> None:
        """A queued job ends at once; a running one at its next report. Finished jobs stay as they are."""
        queued = type(self).objects.filter(pk=self.pk, state=self.State.QUEUED)
        if not queued.update(state=self.State.CANCELLED, cancel_requested=True, finished_at=timezone.now()):
            type(self).objects.filter(pk=self.pk, state=self.State.RUNNING).update(cancel_requested=True)
        self.refresh_from_db()

    def requeue(self) -> None:
        """Put a failed or cancelled job back into the queue; it resumes from what it has stored."""
        self.state, self.error, self.cancel_requested, self.finished_at = self.State.QUEUED, "", False, None
        self.save(update_fields=["state", "error", "cancel_requested", "finished_at"])

    def as_progress(self) -> dict:
        """What a progress bar needs, as JSON values."""
        return {
            "state": self.state,
            "done": self.progress_done,
            "total": self.progress_total,
            "unit": self.progress_unit,
            "eta_seconds": self.eta_seconds,
            "error": self.error,
        }


class _Heartbeat(threading.Thread):
    """Keeps a claim alive while the work is busy elsewhere (loading a model, waiting for a process)."""

    def __init__(self, job: Job):
        super().__init__(daemon=True, name=f"heartbeat-{type(job).__name__}-{job.pk}")
        # A copy of its own: the worker's instance is not shared between threads.
        self._job = type(job)(pk=job.pk, attempt=job.attempt, state=job.state)
        self._ended = threading.Event()

    def run(self) -> None:
        interval_seconds = settings.JOB_LEASE_SECONDS / 4
        try:
            while not self._ended.wait(interval_seconds):
                self._beat()
        except JobLost:
            logger.warning("%s %s: lease lost", type(self._job).__name__, self._job.pk)
        finally:
            connection.close()

    def _beat(self) -> None:
        try:
            self._job.heartbeat()
        except OperationalError:  # a locked or restarting database: the lease outlasts three missed beats
            logger.warning("%s %s: a heartbeat was missed", type(self._job).__name__, self._job.pk, exc_info=True)
            connection.close()

    def stop(self) -> None:
        self._ended.set()
        self.join()


def execute(
    model: type[Job], pk: int, work: Callable[[Job], None], *, should_stop: Callable[[], bool] | None = None
) -> bool:
    """Claim the job and do its work; returns False where another worker has it or nothing is left to do.

    ``work`` reports progress with ``job.report`` and ends by returning (SUCCEEDED), with JobCancelled
    (CANCELLED), JobInterrupted (back to QUEUED) or any other exception (FAILED; raised again unless a JobError).
    """
    job = model.claim(pk)
    if job is None:
        return False
    if should_stop is not None:
        job.should_stop = should_stop
    heartbeat = _Heartbeat(job)
    heartbeat.start()
    try:
        try:
            if job.cancel_requested:  # asked for while the worker before this one lay dead
                raise JobCancelled
            work(job)
        finally:
            heartbeat.stop()
        job._finish(job.State.SUCCEEDED)
    except JobLost:
        logger.warning("%s %s: left to the worker that claimed it", model.__name__, pk)
    except JobCancelled:
        job._finish(job.State.CANCELLED)
    except JobInterrupted:
        job._update_own(state=job.State.QUEUED)
    except JobError as error:
        job._finish(job.State.FAILED, str(error))
    except Exception as error:
        job._finish(job.State.FAILED, f"{type(error).__name__}: {error}")
        raise
    return True


def sweep(model: type[Job], enqueue: Callable[[int], None]) -> int:
    """Ring again for every claimable job: the broker may have lost its message, or its worker died."""
    keys = list(model.objects.claimable().order_by("pk").values_list("pk", flat=True))
    for pk in keys:
        enqueue(pk)
    return len(keys)
