"""Updates of generators in the application: queued after a run or for a release, and released when accepted."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from generation.services import publish_release
from medsyn.artifacts import write_json
from tests.training.runs import CONFIG, Purpose, State, make_checkpoint, make_pipeline, make_run
from training import report_figures, runner, services, tasks
from training.models import TrainingRun
from training.rlhf.config import RLHFConfig
from training.rlhf.generator_update.settings import UpdateSettings
from training.services import TrainingError

pytestmark = pytest.mark.django_db
WITH_UPDATE = {**CONFIG, "synthetic_system": {**CONFIG["synthetic_system"], "enable_training": True}}
DECISION = {
    "accepted": True, "objections": [], "poor_by": "a panel says so", "images": 300, "seconds": 9,
    "poor": {"before": {"value": 0.3}, "after": {"value": 0.2}}, "copies": {"after": {"value": 0.01}},
    "diversity": {"relative": 0.01}, "coverage": {"relative": 0.02},
}  # fmt: skip


def phantom_generator(folder: Path) -> Path:
    make_pipeline(folder)
    write_json(folder / "model_index.json", {"draws_phantoms": True})
    return folder


@pytest.fixture
def trained(tmp_path, alice) -> TrainingRun:
    """A finished training of selector and policy that asks for an update."""
    run = make_run(
        config=WITH_UPDATE,
        generator=str(phantom_generator(tmp_path / "generator")),
        state=State.SUCCEEDED,
        created_by=alice,
        is_simulated=True,
    )
    make_checkpoint(run, 10)
    return run


def test_a_run_that_asks_for_it_is_followed_by_one_update(trained, alice):
    update = services.follow_up(run=trained)
    assert (update.purpose, update.state, update.created_by) == (Purpose.UPDATE, State.QUEUED, alice)
    assert update.is_simulated and update.generator == trained.generator
    settings = UpdateSettings.from_dict(update.config)
    assert Path(settings.selector_file).read_text() == f"selector {trained.pk} 10"
    assert Path(settings.policy_file).read_text() == f"policy {trained.pk} 10"
    assert settings.real_data == "" and settings.quality_threshold == 0.6
    assert services.follow_up(run=trained) == update
    assert TrainingRun.objects.filter(purpose=Purpose.UPDATE).count() == 1


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.QUEUED])
def test_only_success_is_followed(trained, state):
    trained.state = state
    assert services.follow_up(run=trained) is None


def test_without_the_key_nothing_follows(trained):
    trained.config = CONFIG
    assert services.follow_up(run=trained) is None
    assert services.follow_up(run=make_run(Purpose.FINETUNE, config={}, state=State.SUCCEEDED)) is None


def test_the_worker_queues_the_update_when_the_run_ends(trained, monkeypatch):
    TrainingRun.objects.filter(pk=trained.pk).update(state=State.QUEUED)
    monkeypatch.setattr(runner, "run", lambda job: None)
    monkeypatch.setattr(tasks.run_training, "delay", lambda pk: None)
    tasks.run_training(trained.pk)
    trained.refresh_from_db()
    assert trained.state == State.SUCCEEDED
    assert TrainingRun.objects.get(purpose=Purpose.UPDATE).state == State.QUEUED


def test_an_update_that_cannot_be_queued_leaves_the_run_a_success(trained, monkeypatch, caplog):
    write_json(Path(trained.generator) / "model_index.json", {})
    TrainingRun.objects.filter(pk=trained.pk).update(state=State.QUEUED)
    monkeypatch.setattr(runner, "run", lambda job: None)
    monkeypatch.setattr(tasks.run_training, "delay", lambda pk: None)
    tasks.run_training(trained.pk)
    trained.refresh_from_db()
    assert trained.state == State.SUCCEEDED and "could not be queued" in caplog.text
    assert not TrainingRun.objects.filter(purpose=Purpose.UPDATE).exists()


class WorkerKilled(BaseException):
    """Nothing that catches exceptions outlives it, like SIGKILL."""


@pytest.fixture
def rung(monkeypatch) -> list[int]:
    """Keys of the runs that workers are told of."""
    keys: list[int] = []
    monkeypatch.setattr(tasks.run_training, "delay", keys.append)
    monkeypatch.setattr(tasks.queue_follow_up, "delay", tasks.queue_follow_up)
    return keys


@pytest.fixture
def orphaned(trained, rung, monkeypatch) -> TrainingRun:
    """A run whose worker was killed after its success was written and before its update was queued."""
    TrainingRun.objects.filter(pk=trained.pk).update(state=State.QUEUED)

    def die(*, run):
        raise WorkerKilled

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", lambda job: None)
        patch.setattr(services, "follow_up", die)
        with pytest.raises(WorkerKilled):
            tasks.run_training(trained.pk)
    trained.refresh_from_db()
    assert trained.state == State.SUCCEEDED and not updates().exists() and rung == []
    return trained


def updates():
    return TrainingRun.objects.filter(purpose=Purpose.UPDATE)


def test_an_update_that_a_killed_worker_left_unqueued_is_queued_by_the_sweep(
    orphaned, rung, alice, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        tasks.sweep_training_runs()
    update = updates().get()
    assert (update.state, update.created_by, update.generator) == (State.QUEUED, alice, orphaned.generator)
    assert rung == [update.pk]


def test_the_sweep_queues_no_second_update(orphaned, trained, rung):
    for _ in range(3):
        tasks.sweep_training_runs()
        tasks.queue_follow_up(orphaned.pk)  # the worker was only slow
    update = updates().get()
    for state in (State.RUNNING, State.FAILED, State.CANCELLED, State.SUCCEEDED):
        updates().update(state=state, heartbeat_at=timezone.now())
        tasks.sweep_training_runs()
        assert updates().get() == update, "an update that came to nothing is not wanted again"


def test_the_sweep_queues_nothing_that_nobody_asked_for(trained, rung):
    for state in (State.FAILED, State.CANCELLED, State.RUNNING):
        TrainingRun.objects.filter(pk=trained.pk).update(state=state, heartbeat_at=timezone.now())
        tasks.sweep_training_runs()
    TrainingRun.objects.filter(pk=trained.pk).update(state=State.SUCCEEDED, config=CONFIG)
    make_run(Purpose.FINETUNE, config={}, state=State.SUCCEEDED)
    tasks.sweep_training_runs()
    assert not updates().exists()


@pytest.mark.django_db(transaction=True)
def test_worker_and_sweeps_at_once_queue_one_update(trained, rung):
    def follow_up(_: int) -> None:
        try:
            tasks.queue_follow_up(trained.pk)
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(follow_up, range(6)))
    assert rung == [updates().get().pk]


def test_a_refused_update_is_told_on_the_runs_page_and_asked_for_once(orphaned, rung, staff, monkeypatch):
    asked = []
    monkeypatch.setattr(tasks.queue_follow_up, "delay", lambda pk: (asked.append(pk), tasks.queue_follow_up(pk)))
    write_json(Path(orphaned.generator) / "model_index.json", {})
    for _ in range(3):
        tasks.sweep_training_runs()
    assert asked == [orphaned.pk] and not updates().exists()
    assert "could not be queued: Which dataset" in staff.get(orphaned.get_absolute_url()).content.decode()
    phantom_generator(Path(orphaned.generator))
    assert staff.post(f"{orphaned.get_absolute_url()}update/").url == updates().get().get_absolute_url()
    orphaned.refresh_from_db()
    assert orphaned.error == ""


@pytest.mark.postgres
@pytest.mark.slow
def test_the_sweep_finds_it_in_postgresql_too(run_on_postgres):
    run_on_postgres(__file__, "-k", "sweep", "-m", "not postgres", "-n0")


def test_a_generator_without_a_known_dataset_is_told_before_training(tmp_path):
    rating = "image_path,rating,modality,expert_level,prompt\na.png,2,OCT,1,OCT: drusen\n"
    (tmp_path / "ratings.csv").write_text(rating)
    wanted = RLHFConfig()
    wanted = replace(wanted, synthetic_system=replace(wanted.synthetic_system, enable_training=True))
    with pytest.raises(TrainingError, match="Which dataset"):
        services.start_rlhf_run(
            ratings_file=tmp_path / "ratings.csv", config=wanted, generator=str(make_pipeline(tmp_path / "generator"))
        )
    assert not TrainingRun.objects.exists()


def test_a_finetuned_generator_replays_its_own_dataset(trained):
    finetuned = make_run(Purpose.FINETUNE, config={"train_data_dir": "/data/eyes.csv"}, state=State.SUCCEEDED)
    trained.generator = str(phantom_generator(finetuned.path / "pipeline"))
    assert services.follow_up(run=trained).config["real_data"] == "/data/eyes.csv"


def release_of(run: TrainingRun):
    folder = run.path / "epoch_10"
    return publish_release(
        pipeline_folder=Path(run.generator),
        selector_file=folder / "selector_checkpoint.safetensors",
        policy_file=folder / "policy_checkpoint.safetensors",
        quality_threshold=0.6,
        name="first",
        manifest={},
        is_simulated=True,
    )


def test_a_release_is_updated_by_its_own_selector_and_every_update_draws_other_seeds(trained, alice):
    finetuned = make_run(Purpose.FINETUNE, config={"train_data_dir": "/data/eyes.csv"}, state=State.SUCCEEDED)
    trained.generator = str(phantom_generator(finetuned.path / "pipeline"))
    release = release_of(trained)
    TrainingRun.objects.filter(pk=trained.pk).update(release=release, generator=trained.generator)
    first, second = (services.start_generator_update(release=release, user=alice, max_steps=7) for _ in range(2))
    assert first.config["generator"] == str(release.folder / "pipeline")
    assert first.config["real_data"] == "/data/eyes.csv" and first.config["max_steps"] == 7
    assert first.parent_release == release
    assert first.config["seed"] != second.config["seed"]


def test_wrong_settings_and_two_sources_are_refused(trained):
    with pytest.raises(TrainingError, match="max_steps is 9999"):
        services.start_generator_update(run=trained, max_steps=9999)
    with pytest.raises(TrainingError, match="either a release or"):
        services.start_generator_update()


def test_the_process_reads_the_configuration_in_its_directory(trained):
    update = services.follow_up(run=trained)
    assert runner.command_for(update)[-4:] == [
        "-m", "training.rlhf.generator_update", "--run_directory", str(update.path),
    ]  # fmt: skip


def finished_update(trained, decision: dict) -> TrainingRun:
    update = services.follow_up(run=trained)
    update.path.mkdir(parents=True)
    if decision["accepted"]:
        make_pipeline(update.path / "pipeline")
    TrainingRun.objects.filter(pk=update.pk).update(state=State.SUCCEEDED, figures=decision)
    update.refresh_from_db()
    return update


def test_an_accepted_update_is_released_with_the_selector_that_chose_its_images(trained):
    before = release_of(trained)
    update = finished_update(trained, DECISION)
    release = services.release(run=update, activate=True)
    assert release.is_active and release.is_simulated and release.quality_threshold == 0.6
    assert release.selector_sha256 == before.selector_sha256
    assert release.pipeline_sha256 != before.pipeline_sha256
    update.refresh_from_db()
    assert update.release == release


def test_a_refused_update_is_not_released_and_says_why(trained, staff):
    refused = {**DECISION, "accepted": False, "objections": ["Diversity may fall by more than 5\u00a0%."]}
    update = finished_update(trained, refused)
    with pytest.raises(TrainingError, match="Diversity may fall"):
        services.release(run=update)
    page = staff.get(update.get_absolute_url())
    assert "Diversity may fall by more than 5\u00a0%." in page.content.decode()
    assert page.context["release_form"] is None


def test_the_page_of_an_accepted_update_shows_its_figures_and_releases_it(trained, staff):
    update = finished_update(trained, DECISION)
    shown = {figure.label: figure.value for figure in report_figures.figures(update)}
    assert shown["Poor before"] == pytest.approx(0.3) and shown["Poor after"] == pytest.approx(0.2)
    assert report_figures.headline(update).label == "Poor after"
    assert "20.0\u00a0%" in staff.get("/training/").content.decode()  # in the list of runs, with its unit
    page = staff.get(update.get_absolute_url())
    assert "<dt>Poor before</dt><dd>30.0\u00a0%" in page.content.decode()
    assert page.context["release_form"].fields["quality_threshold"].initial == 0.6
    url = update.get_absolute_url() + "release/"
    answer = staff.post(url, {"quality_threshold": "0.7", "name": "Better"})
    assert answer.status_code == 302
    update.refresh_from_db()
    assert (update.release.name, update.release.quality_threshold) == ("Better", 0.7)


def test_the_curves_hold_both_losses(trained, staff):
    update = services.follow_up(run=trained)
    update.path.mkdir(parents=True)
    lines = [{"step": step, "synthetic_loss": 1 / step, "real_loss": 0.5, "loss": 1.0} for step in (1, 2, 3)]
    (update.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    chart = staff.get(f"{update.get_absolute_url()}charts/losses/").json()
    assert {series["label"] for series in chart["series"]} == {"Synthetic", "Real"}
