"""The API of training: administrators only, the same checks as the pages, answers that say what to change."""

import uuid

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from generation.services import active_release
from ratings.services import create_study, enrol_reader, freeze_export, submit_rating
from tests.factories import GeneratedImageFactory, StudyFactory, png_bytes
from tests.training.runs import Purpose, State, make_checkpoint, make_pipeline, make_run
from training import cost
from training.models import TrainingRun
from training.run_directory import RunDirectory

pytestmark = pytest.mark.django_db
RUNS = "/api/training/runs/"


@pytest.fixture
def staff(alice, api) -> APIClient:
    return api(alice)


@pytest.fixture
def study(bob):
    made = create_study(name="Chest pilot", images=GeneratedImageFactory.create_batch(2), order_seed=7)
    enrol_reader(study=made, reader=bob, expert_level=3)
    for place in made.assignments.all():
        submit_rating(assignment=place, reader=bob, value=2, client_uuid=uuid.uuid4())
    return made


@pytest.fixture
def generator(tmp_path):
    return make_pipeline(tmp_path / "generator")


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes(1))
    path = tmp_path / "data.csv"
    path.write_text("path,Text,modality\na.png,OCT: drusen,OCT\n")
    return path


def test_runs_are_listed_filtered_and_shown(staff):
    finished = make_run(state=State.SUCCEEDED, name="June", figures={"pass_rate": 0.7}, is_simulated=True)
    checkpoint = make_checkpoint(finished, 5)
    make_run(Purpose.FINETUNE, config={})
    assert staff.get(RUNS).json()["count"] == 2
    rows = staff.get(RUNS, {"purpose": "rlhf", "state": "succeeded", "q": "jun"}).json()["results"]
    assert [row["id"] for row in rows] == [finished.pk]
    assert staff.get(RUNS, {"state": "lost"}).status_code == 400

    detail = staff.get(f"{RUNS}{finished.pk}/").json()
    assert detail["figures"] == {"pass_rate": 0.7} and detail["is_simulated"] is True
    assert detail["config"]["training"]["max_epochs"] == 100
    assert detail["checkpoints"][0]["manifest_sha256"] == checkpoint.manifest_sha256
    assert detail["progress"]["state"] == "succeeded"


def test_a_studys_ratings_are_trained_on(staff, alice, study, generator):
    body = {"study": str(study.public_id), "generator": str(generator), "config": {"training": {"max_epochs": 4}}}
    answer = staff.post(f"{RUNS}rlhf/", body, format="json")
    assert answer.status_code == 201, answer.json()
    run = TrainingRun.objects.get(pk=answer.json()["id"])
    assert (run.config["training"]["max_epochs"], run.export.study, run.created_by) == (4, study, alice)
    again = staff.post(f"{RUNS}rlhf/", {"export": run.export.pk, "generator": str(generator)}, format="json")
    assert again.status_code == 201
    assert TrainingRun.objects.filter(export=run.export).count() == 2


def test_a_selector_run_is_refused_with_the_keys_at_fault(staff, study, generator, tmp_path):
    def faults(**body):
        answer = staff.post(f"{RUNS}rlhf/", {"study": str(study.public_id), **body}, format="json")
        assert answer.status_code == 400
        return answer.json()

    config = {"training": {"max_epoch": 4, "batch_size": 1}}
    assert faults(config=config)["config"] == [
        "training.max_epoch is not a key. Did you mean training.max_epochs?",
        "training.batch_size is 1: must lie between 2 and 4096",
    ]
    assert "study" in faults(study=str(uuid.uuid4()))
    assert faults(export=1) and not TrainingRun.objects.exists()
    assert "model_index.json" in faults(generator=str(tmp_path))["detail"]
    assert "No ratings" in faults(study=str(StudyFactory().public_id), generator=str(generator))["detail"]
    assert staff.post(f"{RUNS}rlhf/", {}, format="json").json() == {"study": ["Give either a study or an export."]}


def test_save_dir_is_the_servers_business(staff, study, generator, artifact_root):
    config = {"training": {"checkpoints": {"save_dir": "/etc", "save_frequency": 3}}}
    body = {"study": str(study.public_id), "generator": str(generator), "config": config}
    staff.post(f"{RUNS}rlhf/", body, format="json")
    run = TrainingRun.objects.get()
    assert run.path.is_relative_to(artifact_root)
    assert run.config["training"]["checkpoints"]["save_frequency"] == 3


def test_fine_tuning_takes_flags(staff, dataset, generator):
    body = {
        "train_data_dir": str(dataset),
        "pretrained_model_name_or_path": str(generator),
        "name": "Eyes",
        "flags": {"max_train_steps": 50, "use_ema": True, "validation_prompts": ["OCT: drusen"]},
    }
    answer = staff.post(f"{RUNS}finetune/", body, format="json")
    assert answer.status_code == 201, answer.json()
    run = TrainingRun.objects.get()
    assert (run.name, run.purpose, run.progress_total) == ("Eyes", Purpose.FINETUNE, 50)
    assert (run.config["use_ema"], run.config["train_batch_size"]) == (True, 8)
    assert run.config["validation_prompts"] == ["OCT: drusen"]


def test_fine_tuning_is_refused_with_the_flags_at_fault(staff, dataset, generator):
    def faults(**body):
        paths = {"train_data_dir": str(dataset), "pretrained_model_name_or_path": str(generator)}
        answer = staff.post(f"{RUNS}finetune/", {**paths, **body}, format="json")
        assert answer.status_code == 400
        return answer.json()

    assert set(faults(flags={"learning_rate": 0, "train_batch_size": 0})) == {"learning_rate", "train_batch_size"}
    assert set(faults(flags={"seed": [1, 2], "lr_scheduler": "wild"})) == {"seed", "lr_scheduler"}
    assert "output_dir is no flag" in faults(flags={"output_dir": "/etc"})["non_field_errors"][0]
    assert "There is no dataset CSV" in faults(train_data_dir="/nowhere.csv")["train_data_dir"][0]
    assert not TrainingRun.objects.exists()


def test_cancel_and_resume(staff):
    run = make_run()
    assert staff.post(f"{RUNS}{run.pk}/cancel/").json()["state"] == "cancelled"
    assert staff.post(f"{RUNS}{run.pk}/resume/").json()["state"] == "queued"
    refused = staff.post(f"{RUNS}{run.pk}/resume/")
    assert (refused.status_code, "this one is queued" in refused.json()["detail"]) == (400, True)


def test_metrics_are_the_charts_of_the_page(staff):
    run = make_run(state=State.RUNNING)
    RunDirectory(run.path).log(step=4, epoch=1, policy_loss=0.5, pass_rate=1.0)
    charts = {chart["name"]: chart for chart in staff.get(f"{RUNS}{run.pk}/metrics/").json()}
    assert set(charts) == {"losses", "auc", "pass-rate", "learning-rates"}
    assert charts["losses"]["series"] == [{"label": "Policy", "values": [0.5], "dash": False}]
    assert (charts["pass-rate"]["x"], charts["auc"]["series"], charts["auc"]["finished"]) == ([1.0], [], False)


def test_release(staff, generator):
    run = make_run(state=State.SUCCEEDED, generator=str(generator))
    url = f"{RUNS}{run.pk}/release/"
    assert "no complete checkpoint" in staff.post(url, {}, format="json").json()["detail"]
    make_checkpoint(run, 5)
    unknown = staff.post(url, {"checkpoint": "epoch_6"}, format="json").json()
    assert unknown == {"checkpoint": ["There is no checkpoint 'epoch_6'. Checkpoints: epoch_5."]}
    assert "quality_threshold" in staff.post(url, {"quality_threshold": 2}, format="json").json()
    answer = staff.post(url, {"checkpoint": "epoch_5", "name": "June", "activate": True}, format="json")
    assert answer.status_code == 201
    assert answer.json()["digest"] == active_release().digest
    assert staff.get(f"{RUNS}{run.pk}/").json()["release"] == active_release().digest


# --- queue, log, cost ---


def test_a_queued_run_tells_its_place_a_finished_one_none(staff):
    at_work = make_run(state=State.RUNNING, device="hall/cpu", heartbeat_at=timezone.now())
    first, second = make_run(), make_run()
    told = staff.get(f"{RUNS}{second.pk}/").json()["queue"]
    assert (told["place"], told["length"], told["at_work"], told["ahead"]) == (2, 2, [at_work.pk], [first.pk])
    assert told["sentence"].startswith("Place 2 of 2")
    shown = staff.get(f"{RUNS}{at_work.pk}/").json()
    assert (shown["queue"], shown["device"]) == (None, "hall/cpu")


def test_the_end_of_the_log_is_told(staff):
    run = make_run()
    assert staff.get(f"{RUNS}{run.pk}/log/").json() == {"log": ""}
    (run.path / "log.txt").write_text("".join(f"line {number}\n" for number in range(100)))
    assert staff.get(f"{RUNS}{run.pk}/log/").json()["log"].splitlines()[::59] == ["line 40", "line 99"]


def test_a_cost_is_told_and_nothing_started(staff, study, dataset):
    body = {"study": str(study.public_id), "config": {"training": {"max_epochs": 10}}}
    told = staff.post(f"{RUNS}rlhf/cost/", body, format="json").json()
    rates = cost.DEFAULT_RLHF
    assert told["seconds"] == pytest.approx(2 * (rates.per_image + 10 * rates.per_unit))
    assert told["bytes"] == rates.checkpoint_bytes + rates.final_bytes
    assert staff.post(f"{RUNS}rlhf/cost/", {}, format="json").status_code == 400
    export = freeze_export(study=study)
    export.path.unlink()
    lost = staff.post(f"{RUNS}rlhf/cost/", {"export": export.pk}, format="json")
    assert lost.status_code == 400 and str(export.path) in lost.json()["detail"]
    flags = {"train_data_dir": str(dataset), "flags": {"max_train_steps": 7, "train_batch_size": 2}}
    told = staff.post(f"{RUNS}finetune/cost/", flags, format="json").json()
    tiny = cost.DEFAULT_FINETUNING
    assert told["seconds"] == pytest.approx(tiny.per_image + 14 * tiny.per_unit)
    assert not TrainingRun.objects.exists()


def test_a_finished_run_updates_its_generator(staff, generator):
    run = make_run(state=State.SUCCEEDED, generator=str(generator))
    make_checkpoint(run, 5)
    refused = staff.post(f"{RUNS}{run.pk}/update/")
    assert refused.status_code == 400 and "Which dataset" in refused.json()["detail"]
    (generator / "model_index.json").write_text('{"draws_phantoms": true}')
    told = [staff.post(f"{RUNS}{run.pk}/update/") for _ in range(2)]
    assert [answer.status_code for answer in told] == [201, 201]
    assert told[0].json()["id"] == told[1].json()["id"] and told[0].json()["purpose"] == "update"
