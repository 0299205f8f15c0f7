"""The commands of training: what they refuse, in which words, and what they leave in the rows."""

import sys

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from generation.services import active_release
from medsyn.artifacts import file_sha256
from ratings.models import Export
from tests.factories import StudyFactory
from tests.training.runs import Purpose, State, make_checkpoint, make_pipeline, make_run
from training import runner
from training.models import TrainingRun

pytestmark = pytest.mark.django_db
CSV = "image_path,rating,modality,expert_level,prompt\na.png,2,OCT,1,OCT: drusen\n"


@pytest.fixture
def ratings(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text(CSV)
    return path


@pytest.fixture
def generator(tmp_path):
    return make_pipeline(tmp_path / "generator")


@pytest.fixture
def trainer(monkeypatch):
    """``trainer("--fail_at", "2")``: flags of the fake trainer that runs start; four steps."""

    def choose(*flags: str) -> None:
        def command(run: TrainingRun) -> list[str]:
            return [sys.executable, "-m", "tests.training.fake_trainer", str(run.path), "4", *flags]

        monkeypatch.setattr(runner, "command_for", command)

    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    choose()
    return choose


def train(ratings, generator, *flags: str) -> None:
    files = ("--ratings_file", str(ratings), "--pipeline", str(generator))
    call_command("train_rlhf", *files, *flags, verbosity=0)


# --- train_rlhf ---


def test_train_rlhf_trains_reports_and_releases(ratings, generator, trainer, capsys):
    train(ratings, generator, "--name", "First", "--release")
    run = TrainingRun.objects.get()
    assert (run.state, run.name, run.figures) == (State.SUCCEEDED, "First", {"pass_rate": 0.75})
    assert active_release().name == "First"
    said = capsys.readouterr().out
    assert f"Run {run.pk} is finished: {run.path}" in said
    assert "pass_rate: 0.75" in said


def test_train_rlhf_queues_the_update_that_the_configuration_asks_for(ratings, generator, trainer, tmp_path):
    (generator / "model_index.json").write_text('{"draws_phantoms": true}')
    config = tmp_path / "config.yaml"
    config.write_text("synthetic_system: {enable_training: true}")
    train(ratings, generator, "--config", str(config))
    run = TrainingRun.objects.get(purpose=Purpose.RLHF)
    update = TrainingRun.objects.get(purpose=Purpose.UPDATE)
    assert (run.state, update.state, update.run_directory) == (
        State.SUCCEEDED,
        State.QUEUED,
        f"updates/after-run-{run.pk}",
    )


def test_train_rlhf_in_the_background_only_queues(ratings, generator, capsys):
    train(ratings, generator, "--background")
    run = TrainingRun.objects.get()
    assert (run.state, run.attempt) == (State.QUEUED, 0)
    assert f"Run {run.pk} is queued" in capsys.readouterr().out


def test_train_rlhf_fails_with_the_log(ratings, generator, trainer):
    trainer("--fail_at", "2")
    with pytest.raises(CommandError, match=r"is failed\.(.|\n)*the disk is full"):
        train(ratings, generator)


def test_train_rlhf_names_what_is_wrong(ratings, generator, tmp_path):
    with pytest.raises(CommandError, match=r"nowhere\.csv"):
        train(tmp_path / "nowhere.csv", generator)
    with pytest.raises(CommandError, match="model_index.json"):
        train(ratings, tmp_path)
    with pytest.raises(CommandError, match="There is no study 'Chest'. Studies: none"):
        call_command("train_rlhf", "--study", "Chest")
    (tmp_path / "config.yaml").write_text("training: {max_epoch: 3}")
    with pytest.raises(CommandError, match="Did you mean training.max_epochs"):
        train(ratings, generator, "--config", str(tmp_path / "config.yaml"))
    assert not TrainingRun.objects.exists()


def test_train_rlhf_refuses_a_study_without_ratings_and_epochs_out_of_range(ratings, generator):
    StudyFactory(name="Empty")
    with pytest.raises(CommandError, match="rating"):
        call_command("train_rlhf", "--study", "Empty")
    with pytest.raises(CommandError, match="training.max_epochs"):
        train(ratings, generator, "--max_epochs", "0")


def test_train_rlhf_takes_up_the_same_run(ratings, generator, trainer, capsys):
    """Only an export is known by its content, so the ratings are one here."""
    Export.objects.create(file=str(ratings), sha256=file_sha256(ratings), row_count=1)
    train(ratings, generator, "--unless_done")
    train(ratings, generator, "--unless_done")
    assert TrainingRun.objects.count() == 1
    train(ratings, generator, "--unless_done", "--max_epochs", "7")
    assert TrainingRun.objects.count() == 2


# --- release ---


def test_release_publishes_the_newest_run_that_succeeded(tmp_path, capsys):
    generator = str(make_pipeline(tmp_path / "pipeline"))
    run = make_run(state=State.SUCCEEDED, generator=generator, finished_at="2026-01-01T00:00Z")
    make_checkpoint(run, 5)
    make_checkpoint(make_run(state=State.FAILED, generator=generator), 5)
    call_command("release", "--activate", "--quality_threshold", "0.4")
    assert (active_release().name, active_release().quality_threshold) == (run.name, 0.4)
    assert "is active" in capsys.readouterr().out
    with pytest.raises(CommandError, match="no checkpoint 'epoch_7'. Checkpoints: epoch_5"):
        call_command("release", str(run.pk), "--checkpoint", "epoch_7")
    with pytest.raises(CommandError, match="must lie in"):
        call_command("release", str(run.pk), "--quality_threshold", "7")


def test_release_without_a_run_says_how_to_get_one():
    with pytest.raises(CommandError, match="have been trained. Start with manage.py train_rlhf"):
        call_command("release")
    finetuning = make_run(Purpose.FINETUNE, state=State.SUCCEEDED)
    with pytest.raises(CommandError, match="needs a selector and a policy"):
        call_command("release", str(finetuning.pk))
    with pytest.raises(CommandError, match=f"There is no run {finetuning.pk + 1}"):
        call_command("release", str(finetuning.pk + 1))


def test_release_publishes_an_accepted_update(tmp_path):
    files = {}
    for name in ("selector", "policy"):
        files[f"{name}_file"] = str(tmp_path / name)
        (tmp_path / name).write_text(name)
    config = {**files, "quality_threshold": 0.55}
    update = make_run(Purpose.UPDATE, config=config, state=State.SUCCEEDED, figures={"accepted": True})
    make_pipeline(update.path / "pipeline")
    call_command("release", str(update.pk), "--activate")
    update.refresh_from_db()
    assert (active_release(), active_release().quality_threshold) == (update.release, 0.55)


# --- finetune ---


def test_finetune_records_its_run(tmp_path, trainer, capsys):
    flags = ("--train_data_dir", str(tmp_path / "d.csv"), "--output_dir", str(tmp_path / "out"))
    call_command("finetune", *flags, "--max_train_steps", "4", verbosity=0)
    run = TrainingRun.objects.get()
    assert (run.purpose, run.state, run.progress_done) == (Purpose.FINETUNE, State.SUCCEEDED, 4)
    assert run.path == tmp_path / "out"
    assert str(tmp_path / "out" / "pipeline") in capsys.readouterr().out


def test_finetune_names_every_wrong_flag(tmp_path):
    flags = ("--train_data_dir", str(tmp_path / "d.csv"), "--output_dir", str(tmp_path))
    with pytest.raises(CommandError) as caught:
        call_command("finetune", *flags, "--learning_rate", "0", "--train_batch_size", "0")
    assert "--learning_rate" in str(caught.value)
    assert "--train_batch_size" in str(caught.value)
    with pytest.raises(CommandError, match="output_dir"):
        call_command("finetune", "--train_data_dir", "d.csv")
    assert not TrainingRun.objects.exists()


def test_finetune_that_fails_says_why(tmp_path, trainer):
    trainer("--fail_at", "1")
    flags = ("--train_data_dir", str(tmp_path / "d.csv"), "--output_dir", str(tmp_path / "out"))
    with pytest.raises(CommandError, match="the disk is full"):
        call_command("finetune", *flags, verbosity=0)


# --- demo_accounts ---


def test_demo_accounts_prints_passwords_that_work_once_only(capsys, client):
    call_command("demo_accounts")
    lines = dict(line.split(": password ") for line in capsys.readouterr().out.splitlines())
    passwords = {name: rest.split()[0] for name, rest in lines.items()}
    assert set(passwords) == {"admin", "clinician"}
    for name, password in passwords.items():
        assert client.login(username=name, password=password)
    admin = get_user_model().objects.get(username="admin")
    clinician = get_user_model().objects.get(username="clinician")
    assert admin.is_staff and not clinician.is_staff
    assert [group.name for group in clinician.groups.all()] == ["Clinicians"]
    assert (clinician.expertise.get().expert_level, clinician.expertise.get().verified_by) == (2, admin)

    call_command("demo_accounts")
    said = capsys.readouterr().out
    assert said.count("exists") == 2 and "password " + passwords["admin"] not in said
    admin.refresh_from_db()
    assert admin.check_password(passwords["admin"])
