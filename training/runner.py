"""The one door from Django to training code: a process of its own, watched and recorded.

Torch is never imported here. The process knows a run directory and nothing of Django; this module starts it,
copies its progress into the row, ends it on cancel or shutdown, and books the checkpoints it left.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

from medsyn.artifacts import MANIFEST_NAME, file_sha256, read_manifest
from medsyn.jobs import JobError
from training import lifeline
from training.models import Checkpoint, TrainingRun
from training.run_directory import METRICS_NAME, RunDirectory

LOG_NAME = "log.txt"
REPORT_NAME = "report.json"
POLL_SECONDS = 0.5
STOP_SECONDS = 30  # how long a process may take to save and leave after SIGTERM
_TAIL_BYTES = 64 * 1024
_MODULES = {
    TrainingRun.Purpose.RLHF: "training.rlhf.train",
    TrainingRun.Purpose.FINETUNE: "training.finetuning.train",
    TrainingRun.Purpose.UPDATE: "training.rlhf.generator_update",
}
# Their processes read config.json in the run directory; the others take flags.
_READ_CONFIG = (TrainingRun.Purpose.RLHF, TrainingRun.Purpose.UPDATE)


def command_for(run: TrainingRun) -> list[str]:
    """The command line of the run's process; also what a person would type."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--num_cpu_threads_per_process", str(settings.TORCH_NUM_THREADS)]
    if settings.DEVICE == "cpu":
        launch.append("--cpu")
    return [*launch, "-m", _MODULES[run.purpose], *_arguments(run)]


def _arguments(run: TrainingRun) -> list[str]:
    if run.purpose in _READ_CONFIG:
        return ["--run_directory", str(run.path)]
    values = {**run.config, "output_dir": str(run.path)}
    if RunDirectory(run.path).latest():
        values["resume_from_checkpoint"] = "latest"
    arguments = []
    for name, value in values.items():
        if value is True:
            arguments.append(f"--{name}")
        elif value is False and values.get("recipe"):
            arguments.append(f"--no-{name}")  # the recipe may switch it on
        elif isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)] if value else []
        elif value is not None and value is not False:
            arguments += [f"--{name}", str(value)]
    return arguments


def run(job: TrainingRun, on_progress: Callable[[TrainingRun], None] = lambda job: None) -> None:
    """Train until the process ends; raises JobError with the log's last lines where it failed.

    ``on_progress`` sees the row after every report. A report may raise JobCancelled or JobInterrupted: the process
    is then asked to save and leave.
    """
    directory = RunDirectory(job.path)
    directory.path.mkdir(parents=True, exist_ok=True)
    if job.purpose in _READ_CONFIG:
        directory.write_config(job.config)
    try:
        with _process(job) as process:
            changed_ns = 0
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                _report_progress(job, directory)
                on_progress(job)
                if changed_ns != (changed_ns := job.path.stat().st_mtime_ns):  # an entry came: a checkpoint, maybe
                    book_results(job)
        _report_progress(job, directory)
        on_progress(job)
    finally:
        book_results(job)  # what a cancelled or failed run has saved can be resumed and released
    if process.returncode:
        raise JobError(f"The training process ended with exit code {process.returncode}.\n{log_tail(job, 20)}")


@contextmanager
def _process(job: TrainingRun) -> Iterator[subprocess.Popen]:
    environment = {**os.environ, lifeline.VARIABLE: "stdin", "OMP_NUM_THREADS": str(settings.TORCH_NUM_THREADS)}
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment |= _visible_devices()
    with (job.path / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(
            command_for(job),
            stdin=subprocess.PIPE,  # the lifeline: closes when this worker dies
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=settings.BASE_DIR,
            env=environment,
            start_new_session=True,  # one group, so that launcher and trainer end together
        )
    try:
        yield process
    finally:
        _end(process)
        process.stdin.close()


def _visible_devices() -> dict[str, str]:
    """What makes the process train on the device of the settings: none of the GPUs, or one of those visible here."""
    if settings.DEVICE == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if not settings.DEVICE.startswith("cuda:"):
        return {}
    number = settings.DEVICE.removeprefix("cuda:")
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {"CUDA_VISIBLE_DEVICES": visible[int(number)] if visible else number}


def _end(process: subprocess.Popen) -> None:
    """Ask the whole group to stop, and insist after STOP_SECONDS."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _report_progress(job: TrainingRun, directory: RunDirectory) -> None:
    progress = last_progress(directory)
    if progress is None:
        progress = {"done": job.progress_done, "total": job.progress_total, "unit": job.progress_unit}
    job.report(progress["done"], progress["total"], progress["unit"])


def last_progress(directory: RunDirectory) -> dict | None:
    """The newest ``progress`` in the metrics."""
    return last_values(directory, ["progress"]).get("progress")


def last_values(directory: RunDirectory, names: Collection[str]) -> dict:
    """The newest value of each name that the last metrics hold."""
    found: dict = {}
    for values in _last_lines(directory):
        found |= {name: values[name] for name in names if name not in found and values.get(name) is not None}
        if len(found) == len(names):
            break
    return found


def _last_lines(directory: RunDirectory) -> Iterator[dict]:
    """The newest metrics first, read from the end of the file."""
    path = directory.path / METRICS_NAME
    if not path.exists():
        return
    for line in reversed(_tail(path).splitlines()):
        if line.startswith("{") and line.endswith("}"):
            yield json.loads(line)


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TAIL_BYTES, 0))
        text = file.read().decode(errors="replace")
    return text if size <= _TAIL_BYTES else text.partition("\n")[2]


def log_tail(job: TrainingRun, num_lines: int) -> str:
    """The last lines of the process's output; progress bars count as their last state."""
    path = job.path / LOG_NAME
    if not path.exists():
        return ""
    lines = (line.rsplit("\r", 1)[-1] for line in _tail(path).splitlines() if line.strip())
    return "\n".join(deque(lines, maxlen=num_lines))


def book_results(job: TrainingRun) -> None:
    """The report into the row, and a Checkpoint row for every complete checkpoint folder that has none yet."""
    report = job.path / REPORT_NAME
    if report.exists():
        TrainingRun.objects.filter(pk=job.pk).update(figures=json.loads(report.read_text()))
    known = set(job.checkpoints.values_list("name", flat=True))
    for folder in RunDirectory(job.path).checkpoints():
        if folder.name not in known:
            Checkpoint.objects.get_or_create(
                run=job,
                name=folder.name,
                defaults={
                    "step": read_manifest(folder)["step"],
                    "manifest_sha256": file_sha256(folder / MANIFEST_NAME),
                },
            )
