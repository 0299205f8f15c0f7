"""Where a run stands: progress with the time left, and in words its stage, epoch, device and place in the queue."""

from typing import Any

from training.models import TrainingRun
from training.queueing import Queue
from training.run_directory import RunDirectory
from training.runner import last_values


def progress_of(run: TrainingRun) -> dict[str, Any]:
    """What a progress bar needs, as JSON values; the process's own estimate of the time left counts first."""
    progress = run.as_progress()
    if run.state == run.State.RUNNING:
        seconds = last_values(RunDirectory(run.path), ("seconds_left",)).get("seconds_left")
        progress["eta_seconds"] = progress["eta_seconds"] if seconds is None else round(seconds)
    return progress


def status_of(run: TrainingRun) -> dict[str, str]:
    """Stage, epoch, device and queue in words; queue is empty for a run that does not wait."""
    values = last_values(RunDirectory(run.path), ("stage", "epoch", "device"))
    epoch = values.get("epoch")
    status = {"stage": str(values["stage"]) if "stage" in values else "–", "epoch": "–"}
    if run.purpose == run.Purpose.RLHF:
        if "stage" in values:
            status["stage"] += f" of {run.config['training']['stage']}"
        if epoch is not None:
            status["epoch"] = f"{epoch} of {run.config['training']['max_epochs']}"
    elif epoch is not None:
        status["epoch"] = f"{epoch:.1f}"
    place = Queue().standing(run)
    return status | {"device": _device(run, values), "queue": place.sentence if place else ""}


def _device(run: TrainingRun, values: dict[str, Any]) -> str:
    """The device that the process reported, else the one it was claimed for; nobody knows one before."""
    claimed = run.device_name
    reported = str(values.get("device") or "")
    if reported and claimed:
        return f"{reported} ({claimed})" if reported != claimed.partition(" ")[0] else claimed
    return reported or claimed or "–"
