"""What a person is told of a run that waits, and of what goes on beside it."""

from dataclasses import dataclass
from functools import cached_property

from django.conf import settings
from django.utils import timezone

from generation.models import GenerationJob
from training.models import TrainingRun

_PATIENCE_SWEEPS = 3  # after so many sweeps without a claim there is no worker for it


@dataclass(frozen=True)
class Standing:
    """A queued run among those that wait."""

    place: int  # 1 is next
    length: int  # of the queue
    at_work: list[TrainingRun]  # those that hold a device now
    ahead: list[TrainingRun]  # those that are taken before it, the next one first
    is_overdue: bool  # a device is free and nobody has taken the next run

    @property
    def sentence(self) -> str:
        place = f"Place {self.place} of {self.length} in the queue"
        if self.at_work:
            where = [f"run {run.pk} ({run}) on {run.device_name or 'a device'}" for run in self.at_work]
            return f"{place}. A device trains one run at a time; at work: {'; '.join(where)}."
        if self.is_overdue:
            return f"{place}, and no worker takes it. Is one running for training?"
        return f"{place}: a training worker takes the next one in a moment."


class Queue:
    """The queue as it stands when its first run that waits is looked at: it is asked for once, for however many."""

    @cached_property
    def waiting(self) -> list[TrainingRun]:
        """Those that wait, the next one first."""
        return list(TrainingRun.objects.waiting())

    @cached_property
    def at_work(self) -> list[TrainingRun]:
        """Those that hold a device."""
        return list(TrainingRun.objects.at_work())

    def standing(self, run: TrainingRun) -> Standing | None:
        """Where a queued run stands; None for a run that does not wait."""
        if run.state != run.State.QUEUED:
            return None
        ahead = [other for other in self.waiting if (other.queued_at, other.pk) < (run.queued_at, run.pk)]
        waited = timezone.now() - (ahead[0] if ahead else run).queued_at
        return Standing(
            place=len(ahead) + 1,
            length=len(self.waiting),
            at_work=self.at_work,
            ahead=ahead,
            is_overdue=not self.at_work and waited.total_seconds() > _PATIENCE_SWEEPS * settings.JOB_SWEEP_SECONDS,
        )


def beside() -> str:
    """What generation does meanwhile: it has workers of its own and never waits for training."""
    drawing = GenerationJob.objects.filter(state=GenerationJob.State.RUNNING).count()
    waiting = GenerationJob.objects.filter(state=GenerationJob.State.QUEUED).count()
    if not drawing and not waiting:
        return "Beside training: no generation. Its workers are others, so it need not wait for training."
    return (
        f"Beside training: {drawing} generation{'' if drawing == 1 else 's'} drawing, {waiting} waiting for a "
        "generation worker. They do not wait for training, but share its processor: both are slower for it."
    )
