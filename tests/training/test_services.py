"""Starting, cancelling, resuming and releasing runs: what is written, what is refused and in which words."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from django.utils import timezone

from generation.models import Release
from generation.services import ReleaseError, active_release
from medsyn.artifacts import file_sha256
from ratings.csv_schema import RatingsCSVError
from ratings.models import Export
from ratings.services import StudyError
from tests.factories import StudyFactory, png_bytes
from tests.training.runs import Purpose, State, make_checkpoint, make_pipeline, make_run
from training import services, tasks
from training.finetuning.arguments import Arguments
from training.models import TrainingRun
from training.rlhf.config import RLHFConfig

pytestmark = pytest.mark.django_db
CONFIG = RLHFConfig()
RATING = {"image_path": "a.png", "rating": "2", "modality": "OCT", "expert_level": "1", "prompt": "OCT: drusen"}


@pytest.fixture
def rung(monkeypatch) -> list[int]:
    """Keys of the runs that the broker was told of."""
    keys = []
    monkeypatch.setattr(tasks.run_training, "delay", keys.append)
    return keys


@pytest.fixture
def generator(tmp_path) -> Path:
    return make_pipeline(tmp_path / "generator")


def write_csv(path: Path, rows: list[dict], columns=tuple(RATING)) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def ratings(tmp_path) -> Path:
    return write_csv(tmp_path / "ratings.csv", [RATING, {**RATING, "rating": "1"}])


def dataset(tmp_path: Path, rows: list[tuple[str, str, str]]) -> Path:
    (tmp_path / "a.png").write_bytes(png_bytes(1))
    columns = ("path", "Text", "modality")
    return write_csv(tmp_path / "data.csv", [dict(zip(columns, row, strict=True)) for row in rows], columns)


# --- selector and policy ---


def test_a_run_holds_everything_that_its_process_needs(ratings, generator, alice, rung):
    run = services.start_rlhf_run(ratings_file=ratings, config=CONFIG, generator=str(generator), user=alice)
    assert (run.state, run.purpose, run.created_by) == (State.QUEUED, Purpose.RLHF, alice)
    assert run.name == "Selector and policy on 2 ratings"
    assert run.config["data"]["ratings_file"] == str(ratings)
    assert run.config["model_paths"]["stable_diffusion"] == run.generator == str(generator)
    assert (run.progress_done, run.progress_total, run.progress_unit) == (0, 0, "steps")


def test_the_broker_is_told_once_the_row_is_stored(ratings, generator, rung, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        run = services.start_rlhf_run(ratings_file=ratings, config=CONFIG, generator=str(generator))
        assert rung == []
    assert rung == [run.pk]


def test_a_broker_that_is_down_costs_nothing_but_time(
    ratings, generator, monkeypatch, django_capture_on_commit_callbacks
):
    def refuse(key):
        raise ConnectionError("no broker")

    monkeypatch.setattr(tasks.run_training, "delay", refuse)
    with django_capture_on_commit_callbacks(execute=True):
        run = services.start_rlhf_run(ratings_file=ratings, config=CONFIG, generator=str(generator))
    assert TrainingRun.objects.claimable().get() == run


def test_two_runs_of_one_second_get_two_directories(ratings, generator):
    first, second = (
        services.start_rlhf_run(ratings_file=ratings, config=CONFIG, generator=str(generator)) for _ in range(2)
    )
    assert first.run_directory != second.run_directory
    assert first.path.parent == second.path.parent


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        ([], services.TrainingError, "holds no rating"),
        ([{**RATING, "rating": "4"}], RatingsCSVError, "rating"),
    ],
)
def test_a_csv_that_cannot_train_is_refused_before_there_is_a_run(tmp_path, generator, rows, error, text):
    with pytest.raises(error, match=text):
        services.start_rlhf_run(
            ratings_file=write_csv(tmp_path / "r.csv", rows), config=CONFIG, generator=str(generator)
        )
    assert not TrainingRun.objects.exists()


def test_a_folder_that_is_no_generator_is_refused(ratings, tmp_path):
    with pytest.raises(services.TrainingError, match="model_index.json"):
        services.start_rlhf_run(ratings_file=ratings, config=CONFIG, generator=str(tmp_path))


def test_an_export_is_known_by_its_content_and_passes_its_mark_on(ratings, generator):
    export = Export.objects.create(file="elsewhere.csv", sha256=file_sha256(ratings), row_count=2, has_simulated=True)
    run = services.start_rlhf_run(ratings_file=ratings, config=CONFIG, generator=str(generator))
    assert (run.export, run.is_simulated) == (export, True)


def test_the_same_work_is_recognised_by_content(ratings, generator):
    Export.objects.create(file="x.csv", sha256=file_sha256(ratings), row_count=2)
    run = services.start_rlhf_run(ratings_file=ratings, config=CONFIG, generator=str(generator))
    same = {"ratings_file": ratings, "config": CONFIG, "generator": str(generator)}
    assert services.earlier_run(**same) == run
    other = replace(CONFIG, training=replace(CONFIG.training, seed=1))
    assert services.earlier_run(**{**same, "config": other}) is None


def test_one_source_of_ratings_and_only_one():
    with pytest.raises(services.TrainingError, match="either a study or an export"):
        services.train_on_ratings(config=CONFIG)


def test_a_study_without_ratings_is_refused():
    with pytest.raises(StudyError, match="No ratings"):
        services.train_on_ratings(study=StudyFactory(), config=CONFIG)
    assert not Export.objects.exists()


def test_an_export_whose_file_is_gone_is_refused():
    export = Export.objects.create(file="exports/gone/ratings.csv", sha256="0" * 64, row_count=1)
    with pytest.raises(services.TrainingError, match="is gone"):
        services.train_on_ratings(export=export, config=CONFIG)


# --- fine-tuning ---


@pytest.fixture
def arguments(tmp_path) -> Arguments:
    return Arguments(train_data_dir=tmp_path / "eyes" / "data.csv", output_dir=tmp_path / "out", max_train_steps=9)


def test_fine_tuning_twice_into_one_folder_is_one_run(arguments, rung):
    run = services.start_finetuning(arguments=arguments)
    assert (run.name, run.progress_total, run.path) == ("Fine-tune on eyes", 9, arguments.output_dir)
    TrainingRun.objects.update(state=State.RUNNING, heartbeat_at=timezone.now())
    with pytest.raises(services.TrainingError, match=f"belongs to run {run.pk}, which is running"):
        services.start_finetuning(arguments=arguments)

    TrainingRun.objects.update(state=State.FAILED, error="no space", cancel_requested=True)
    again = services.start_finetuning(arguments=replace(arguments, max_train_steps=20))
    again.refresh_from_db()
    assert (again.pk, again.state, again.error, again.cancel_requested) == (run.pk, State.QUEUED, "", False)
    assert (again.progress_total, again.config["max_train_steps"]) == (20, 20)


def test_fine_tuning_that_has_succeeded_is_not_done_again(arguments, rung):
    run = services.start_finetuning(arguments=arguments)
    TrainingRun.objects.update(state=State.SUCCEEDED)
    assert services.start_finetuning(arguments=arguments).state == State.SUCCEEDED
    assert services.start_finetuning(arguments=replace(arguments, max_train_steps=20)).state == State.QUEUED
    assert TrainingRun.objects.get() == run


def test_arguments_that_can_be_trained_with_get_a_folder_of_their_own(tmp_path, generator, artifact_root):
    checked = services.checked_arguments(
        train_data_dir=str(dataset(tmp_path, [("a.png", "OCT: drusen", "OCT")])),
        pretrained_model_name_or_path=str(generator),
    )
    assert checked.output_dir.parent == artifact_root / "finetuning"
    assert not checked.output_dir.exists()


def test_every_fault_is_told_at_once_with_its_argument(tmp_path):
    bad = dataset(tmp_path, [("a.png", "no prefix", "OCT"), ("a.png", "OCT: drusen", "CT")])
    with pytest.raises(services.ArgumentFaults) as caught:
        services.checked_arguments(
            train_data_dir=str(bad),
            pretrained_model_name_or_path=str(tmp_path),
            learning_rate=0.0,
            validation_prompts=("nothing known",),
            resume_from_checkpoint="nowhere",
        )
    faults = dict(caught.value.faults)
    assert set(faults) == {
        "learning_rate",
        "validation_prompts",
        "train_data_dir",
        "pretrained_model_name_or_path",
        "resume_from_checkpoint",
    }
    assert "line 2" in faults["train_data_dir"]


def test_bad_rows_may_be_left_out_but_some_row_must_remain(tmp_path, generator):
    values = {"pretrained_model_name_or_path": str(generator), "skip_bad_rows": True}
    some = dataset(tmp_path, [("a.png", "OCT: drusen", "OCT"), ("a.png", "no prefix", "OCT")])
    assert services.checked_arguments(train_data_dir=str(some), **values).skip_bad_rows
    none = dataset(tmp_path, [("a.png", "no prefix", "OCT")] * 30)
    with pytest.raises(services.ArgumentFaults, match="no usable row.*and 20 more"):
        services.checked_arguments(train_data_dir=str(none), **values)


def test_a_dataset_that_is_not_there_is_a_fault(tmp_path, generator):
    with pytest.raises(services.ArgumentFaults, match="There is no dataset CSV"):
        services.checked_arguments(
            train_data_dir=str(tmp_path / "no.csv"), pretrained_model_name_or_path=str(generator)
        )


# --- cancel and resume ---


def test_a_queued_run_is_cancelled_at_once_and_a_running_one_asked(rung):
    queued, running = make_run(), make_run(state=State.RUNNING)
    for run in (queued, running):
        services.cancel_run(run=run)
    assert (queued.state, running.state) == (State.CANCELLED, State.RUNNING)
    assert running.cancel_requested


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_a_run_that_ended_early_can_be_resumed(state, rung, django_capture_on_commit_callbacks):
    run = make_run(state=state, error="no space", cancel_requested=True)
    with django_capture_on_commit_callbacks(execute=True):
        services.resume_run(run=run)
    run.refresh_from_db()
    assert (run.state, run.error, run.cancel_requested) == (State.QUEUED, "", False)
    assert rung == [run.pk]


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.SUCCEEDED])
def test_other_runs_cannot_be_resumed(state):
    with pytest.raises(services.TrainingError, match=f"this one is {state.value}"):
        services.resume_run(run=make_run(state=state))


# --- release ---


@pytest.fixture
def finished(tmp_path) -> TrainingRun:
    run = make_run(state=State.SUCCEEDED, generator=str(make_pipeline(tmp_path / "pipeline")), is_simulated=True)
    make_checkpoint(run, 5)
    make_checkpoint(run, 10)
    return run


def test_a_release_is_the_runs_checkpoint_with_its_generator(finished):
    newest = finished.checkpoints.last()
    release = services.release(run=finished, activate=True)
    finished.refresh_from_db()
    assert active_release() == release == finished.release
    assert (release.name, release.is_simulated, release.quality_threshold) == (finished.name, True, 0.6)
    assert release.selector_sha256 == file_sha256(newest.path / "selector_checkpoint.safetensors")
    assert release.manifest["checkpoint"] == newest.name == "epoch_10"


def test_an_older_checkpoint_and_another_threshold_are_another_release(finished):
    first = services.release(run=finished)
    second = services.release(run=finished, checkpoint=finished.checkpoints.first(), quality_threshold=0.7, name="B")
    assert second != first
    assert (second.name, second.quality_threshold, second.is_active) == ("B", 0.7, False)
    assert services.release(run=finished) == first  # the same pieces are the same release


def test_a_fine_tuned_generator_alone_is_no_release():
    with pytest.raises(services.TrainingError, match="needs a selector and a policy"):
        services.release(run=make_run(Purpose.FINETUNE))


def test_a_run_without_a_checkpoint_cannot_be_released():
    with pytest.raises(services.TrainingError, match="no complete checkpoint yet"):
        services.release(run=make_run(state=State.CANCELLED))


def test_a_changed_checkpoint_is_not_released(finished):
    (finished.checkpoints.last().path / "policy_checkpoint.safetensors").write_text("other weights")
    with pytest.raises(services.TrainingError, match="changed"):
        services.release(run=finished, activate=True)
    assert not Release.objects.exists()


def test_a_threshold_out_of_range_and_a_generator_that_is_gone_are_refused(finished):
    with pytest.raises(ReleaseError, match=r"must lie in 0\.\.1"):
        services.release(run=finished, quality_threshold=1.2)
    (Path(finished.generator) / "model_index.json").unlink()
    with pytest.raises(ReleaseError, match="no pipeline folder"):
        services.release(run=finished)
