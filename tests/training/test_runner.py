"""The runner against real processes: progress, cancel, failure, shutdown, a killed worker, a busy directory."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings

from medsyn.jobs import Job, execute
from tests.training.runs import Purpose, State, make_run
from training import runner
from training.finetuning.arguments import Arguments, parse_arguments
from training.models import TrainingRun
from training.run_directory import RunDirectory, RunDirectoryBusy

WORKER = """
import os, sys
import django
django.setup()
from training import runner
from training.models import TrainingRun
runner.command_for = lambda run: [sys.executable, "-m", "tests.training.fake_trainer", str(run.path), "9999"]
with runner._process(TrainingRun(run_directory=sys.argv[1])) as process:
    print(process.pid, flush=True)
    process.wait()
"""


@pytest.fixture
def run(db) -> TrainingRun:
    return make_run()


@pytest.fixture(autouse=True)
def fake_trainer(monkeypatch) -> Callable[..., None]:
    """Runs start the fake trainer; ``fake_trainer(12, "--stubborn")`` chooses its steps and flags."""

    def choose(steps: int, *flags: str) -> None:
        def command(job: TrainingRun) -> list[str]:
            return [sys.executable, "-m", "tests.training.fake_trainer", str(job.path), str(steps), *flags]

        monkeypatch.setattr(runner, "command_for", command)

    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    choose(7)
    return choose


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie that its parent has not asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited two minutes in vain"
        time.sleep(0.02)


def steps_logged(run: TrainingRun) -> list[int]:
    return [line["step"] for line in RunDirectory(run.path).metrics()]


def test_progress_checkpoints_and_report_land_in_the_row(run):
    seen = []
    execute(TrainingRun, run.pk, lambda job: runner.run(job, on_progress=lambda row: seen.append(row.progress_done)))
    run.refresh_from_db()
    assert (run.state, run.error) == (State.SUCCEEDED, "")
    assert (run.progress_done, run.progress_total, run.progress_unit) == (7, 7, "steps")
    assert seen == sorted(seen) and len(set(seen)) > 2  # it was told while it went on
    assert [(row.name, row.step) for row in run.checkpoints.all()] == [("epoch_3", 3), ("epoch_6", 6), ("epoch_7", 7)]
    assert run.figures == {"pass_rate": 0.75}
    assert RunDirectory(run.path).read_config() == run.config


def test_checkpoints_are_booked_while_the_run_goes_on(run, fake_trainer):
    fake_trainer(9, "--seconds", "0.05")
    booked = []

    def look(row: TrainingRun) -> None:
        booked.append(row.checkpoints.count())

    execute(TrainingRun, run.pk, lambda job: runner.run(job, on_progress=look))
    assert set(booked) >= {0, 1, 2}


def test_cancel_ends_the_whole_process_group(run, fake_trainer):
    fake_trainer(9999, "--with_child")
    pids = []

    def cancel(row: TrainingRun) -> None:
        if row.progress_done >= 4 and not pids:
            pids.append(int((row.path / "child.pid").read_text()))
            assert is_alive(pids[0])
            TrainingRun.objects.get(pk=row.pk).request_cancel()

    execute(TrainingRun, run.pk, lambda job: runner.run(job, on_progress=cancel))
    run.refresh_from_db()
    assert run.state == State.CANCELLED
    wait_until(lambda: not is_alive(pids[0]))
    with RunDirectory(run.path).lock():  # nobody holds it any more
        pass
    last = steps_logged(run)[-1]
    assert run.checkpoints.last().step == last  # asked politely, it saved before it left


def test_a_process_that_will_not_leave_is_killed(run, fake_trainer, monkeypatch):
    monkeypatch.setattr(runner, "STOP_SECONDS", 0.2)
    fake_trainer(9999, "--stubborn")
    execute(TrainingRun, run.pk, runner.run, should_stop=lambda: bool(steps_logged(run)))
    run.refresh_from_db()
    assert run.state == State.QUEUED
    with RunDirectory(run.path).lock():
        pass


def test_a_failure_tells_the_end_of_the_log_and_keeps_the_checkpoints(run, fake_trainer):
    fake_trainer(9, "--fail_at", "5")
    execute(TrainingRun, run.pk, runner.run)
    run.refresh_from_db()
    assert run.state == State.FAILED
    assert run.error.splitlines() == [
        "The training process ended with exit code 1.",
        "from step 1",
        "the disk is full",
    ]
    assert [row.name for row in run.checkpoints.all()] == ["epoch_3"]
    assert run.figures == {}


def test_a_worker_that_shuts_down_hands_the_run_back_and_the_next_goes_on(run, fake_trainer):
    fake_trainer(40)
    execute(TrainingRun, run.pk, runner.run, should_stop=lambda: len(steps_logged(run)) >= 4)
    run.refresh_from_db()
    stopped_at = steps_logged(run)[-1]
    assert (run.state, run.attempt) == (State.QUEUED, 1)
    assert 4 <= stopped_at < 40

    execute(TrainingRun, run.pk, runner.run)
    run.refresh_from_db()
    assert (run.state, run.attempt, run.progress_done) == (State.SUCCEEDED, 2, 40)
    assert steps_logged(run) == list(range(1, 41))  # each step once
    assert f"from step {stopped_at + 1}" in runner.log_tail(run, 10)


def test_a_directory_in_use_is_a_failure_that_says_so(run):
    with RunDirectory(run.path).lock():
        execute(TrainingRun, run.pk, runner.run)
    run.refresh_from_db()
    assert run.state == State.FAILED
    assert f"{run.path} is in use by another training process. Wait for it or stop it." in run.error


def test_a_killed_workers_trainer_ends_by_its_lifeline(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "MEDSYN_VAR_DIR": str(tmp_path / "var")}
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(directory.path)],
        cwd=settings.BASE_DIR,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        trainer = int(worker.stdout.readline())
        wait_until(lambda: directory.latest() is not None)
        with pytest.raises(RunDirectoryBusy), directory.lock():
            pass
        os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(trainer))
    with directory.lock():  # whoever resumes the run finds it free
        assert directory.latest() is not None


def test_the_last_progress_is_read_past_a_line_cut_short(run):
    directory = RunDirectory(run.path)
    directory.log(step=1, progress={"done": 1, "total": 2, "unit": "steps"})
    directory.log(event="saved")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "progress": {"done"')
    assert runner.last_progress(directory) == {"done": 1, "total": 2, "unit": "steps"}
    assert runner.last_values(directory, ["step", "event", "device"]) == {"step": 1, "event": "saved"}


def test_nothing_logged_is_no_progress(run):
    assert runner.last_progress(RunDirectory(run.path)) is None
    assert runner.log_tail(run, 5) == ""


def test_the_log_shows_a_progress_bars_last_state(run):
    (run.path / "log.txt").write_text("start\nbar 1%\rbar 50%\rbar 99%\n\nend\n")
    assert runner.log_tail(run, 2) == "bar 99%\nend"


def test_the_tail_of_a_long_log_begins_with_a_whole_line(run):
    (run.path / "log.txt").write_text("".join(f"line {number:06}\n" for number in range(20_000)))
    lines = runner.log_tail(run, 100_000).splitlines()
    assert lines[-1] == "line 019999"
    assert all(len(line) == len("line 000000") for line in lines)


def test_the_command_line_says_what_the_row_says(db, tmp_path, monkeypatch):
    monkeypatch.undo()
    arguments = Arguments(
        train_data_dir=tmp_path / "data.csv",
        output_dir=tmp_path / "out",
        max_train_steps=5,
        learning_rate=3e-5,
        use_ema=True,
        validation_prompts=("OCT: drusen, many", "Brain MRI: normal"),
    )
    run = TrainingRun(purpose=Purpose.FINETUNE, config=arguments.as_json(), run_directory=str(tmp_path / "out"))
    command = runner.command_for(run)
    flags = command[command.index("training.finetuning.train") + 1 :]
    assert parse_arguments(flags) == arguments

    with RunDirectory(run.path).checkpoint("checkpoint-2", step=2):
        pass
    resumed = runner.command_for(run)
    assert resumed[resumed.index("--resume_from_checkpoint") + 1] == "latest"


def test_the_command_line_of_a_selector_run_is_its_directory(run, monkeypatch):
    monkeypatch.undo()
    assert runner.command_for(run)[-3:] == ["training.rlhf.train", "--run_directory", str(run.path)]


def test_no_field_of_a_run_hides_a_verb_of_the_job():
    verbs = {name for name, value in vars(Job).items() if callable(value)}
    assert not verbs & {field.name for field in TrainingRun._meta.get_fields()}


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("auto", "2,3", {}),
        ("cpu", "2,3", {"CUDA_VISIBLE_DEVICES": ""}),
        ("cuda:1", "", {"CUDA_VISIBLE_DEVICES": "1"}),
        ("cuda:1", "2,3", {"CUDA_VISIBLE_DEVICES": "3"}),
    ],
)
def test_the_process_sees_the_device_of_the_settings(settings, monkeypatch, device, visible, expected):
    settings.DEVICE = device
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert runner._visible_devices() == expected
