"""One run at a time on a device, the rest in their order, and what people are told while they wait."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from medsyn.jobs import Job, JobLost, execute
from tests.training.runs import Purpose, State, make_run
from training import devices, runner, tasks
from training.models import TrainingRun

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def one_processor(settings, monkeypatch):
    settings.DEVICE = "cpu"
    monkeypatch.setattr(devices.platform, "node", lambda: "hall")


def silence(run: TrainingRun, settings) -> None:
    """As if its worker had died longer ago than the lease."""
    long_ago = timezone.now() - timedelta(seconds=settings.JOB_LEASE_SECONDS + 1)
    TrainingRun.objects.filter(pk=run.pk).update(heartbeat_at=long_ago)


def states() -> dict[str, str]:
    return dict(TrainingRun.objects.values_list("name", "state"))


def test_a_second_run_waits_until_the_first_has_ended():
    first, second = make_run(), make_run(Purpose.FINETUNE, config={})
    claimed = TrainingRun.claim(first.pk)
    assert (claimed.device, claimed.state) == ("hall/cpu", State.RUNNING)
    assert TrainingRun.claim(second.pk) is None
    second.refresh_from_db()
    assert (second.state, second.attempt, second.device) == (State.QUEUED, 0, "")
    claimed._finish(State.FAILED, "no space")
    assert TrainingRun.claim(second.pk).device == "hall/cpu"


def test_the_database_itself_refuses_a_second_run_on_a_device():
    first, second = make_run(), make_run()
    TrainingRun.claim(first.pk)
    with pytest.raises(IntegrityError, match=r"device|one_run_per_device"), transaction.atomic():
        TrainingRun.objects.filter(pk=second.pk).update(state=State.RUNNING, device="hall/cpu")
    TrainingRun.objects.filter(pk=second.pk).update(state=State.RUNNING, device="hall/cuda:0")


def test_another_device_is_another_queue(settings):
    first, second = make_run(), make_run(Purpose.FINETUNE, config={})
    assert TrainingRun.claim(first.pk)
    settings.DEVICE = "cuda:1"
    assert TrainingRun.claim(second.pk).device.startswith("hall/cuda:")


@pytest.mark.django_db(transaction=True)
def test_of_many_workers_that_ask_at_once_one_gets_the_device():
    keys = [make_run().pk for _ in range(6)]

    def ask(pk: int) -> bool:
        try:
            return TrainingRun.claim(pk) is not None
        finally:
            connection.close()

    with ThreadPoolExecutor(len(keys)) as pool:
        assert sum(pool.map(ask, keys)) == 1
    assert TrainingRun.objects.filter(state=State.RUNNING).count() == 1


def test_a_dead_workers_run_frees_the_device_when_its_lease_ends(settings):
    dead, next_one = make_run(), make_run()
    claimed = TrainingRun.claim(dead.pk)
    assert TrainingRun.claim(next_one.pk) is None
    silence(dead, settings)
    assert TrainingRun.claim(next_one.pk) is not None
    dead.refresh_from_db()
    assert dead.state == State.QUEUED  # it goes on when the device is free again
    with pytest.raises(JobLost):  # a worker that was only silent can write nothing more
        claimed.report(1, 2, "steps")


def test_the_sweep_hands_back_what_dead_workers_left(settings, monkeypatch):
    monkeypatch.setattr(tasks.run_training, "delay", lambda pk: None)
    stopped = make_run(name="to be stopped", cancel_requested=True, state=State.RUNNING, device="hall/cpu")
    silence(stopped, settings)
    dead = make_run(name="dead", state=State.RUNNING, device="hall/cuda:0")
    silence(dead, settings)
    make_run(name="alive", state=State.RUNNING, device="hall/cuda:1", heartbeat_at=timezone.now())
    tasks.sweep_training_runs()
    assert states() == {"to be stopped": State.CANCELLED, "dead": State.QUEUED, "alive": State.RUNNING}


def test_the_longest_waiting_run_is_taken_whichever_rings(monkeypatch):
    trained, rung = [], []
    monkeypatch.setattr(runner, "run", lambda job: trained.append(job.name))
    monkeypatch.setattr(tasks.run_training, "delay", rung.append)
    make_run(name="first")
    resumed = make_run(name="resumed", state=State.FAILED)
    last = make_run(name="last")
    resumed.requeue()  # at the end of the queue, however old
    tasks.run_training(last.pk)
    assert trained == ["first"] and rung == [last.pk]  # and the next is rung for at once
    tasks.run_training(rung.pop())
    assert trained == ["first", "last"] and rung == [resumed.pk]


def test_a_run_that_finds_the_device_taken_rings_for_nobody(monkeypatch):
    rung = []
    monkeypatch.setattr(tasks.run_training, "delay", rung.append)
    make_run(state=State.RUNNING, device="hall/cpu", heartbeat_at=timezone.now())
    waiting = make_run()
    tasks.run_training(waiting.pk)
    assert rung == [] and TrainingRun.objects.get(pk=waiting.pk).state == State.QUEUED


def test_a_run_that_does_not_exist_is_not_claimed():
    assert TrainingRun.claim(77) is None and execute(TrainingRun, 77, runner.run) is False
    assert not TrainingRun.objects.waiting().ahead_of(77).exists()


@pytest.mark.parametrize(
    ("device", "visible", "has_driver", "wants_gpu", "expected"),
    [
        ("cpu", "0", True, True, "hall/cpu"),
        ("auto", None, False, True, "hall/cpu"),
        ("auto", None, True, True, "hall/cuda:0"),
        ("auto", "", True, True, "hall/cpu"),
        ("auto", "3,1", True, True, "hall/cuda:3"),
        ("auto", "3,1", True, False, "hall/cpu"),
        ("cuda:1", "3,1", True, True, "hall/cuda:1"),
        ("cuda:1", None, False, True, "hall/cuda:1"),
    ],
)
def test_a_device_has_one_name(settings, monkeypatch, tmp_path, device, visible, has_driver, wants_gpu, expected):
    settings.DEVICE = device
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(devices, "_DRIVER_FILES", (tmp_path if has_driver else tmp_path / "none",))
    assert devices.device_of(wants_gpu) == expected
    assert devices.short_name(expected) == expected.removeprefix("hall/") + " of hall"


def test_the_configuration_can_forbid_the_gpu():
    assert make_run(config={"device": {"use_cuda": False}}).wants_gpu is False
    assert make_run(config={}).wants_gpu is True
    assert issubclass(TrainingRun, Job)
