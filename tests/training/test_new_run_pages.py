"""Forms of new runs: every key has a field, faults stand at their key, the cost follows what is typed."""

import uuid

import pytest
from django.urls import reverse
from django.utils.html import escape

from generation import embedded_model
from ratings.models import Export
from ratings.services import create_study, enrol_reader, freeze_export, submit_rating
from tests.factories import GeneratedImageFactory, png_bytes
from tests.training.runs import Purpose, State, make_pipeline, make_run
from training.config_fields import IMPORTANT, settings_of
from training.forms import FinetuneForm, RLHFRunForm
from training.models import TrainingRun
from training.rlhf.config import RLHFConfig, known_keys

pytestmark = pytest.mark.django_db


@pytest.fixture
def study(bob):
    made = create_study(name="Chest pilot", images=GeneratedImageFactory.create_batch(3), order_seed=7)
    enrol_reader(study=made, reader=bob, expert_level=3)
    for value, place in enumerate(made.assignments.order_by("position"), start=1):
        submit_rating(assignment=place, reader=bob, value=value, client_uuid=uuid.uuid4())
    return made


@pytest.fixture
def generator(tmp_path, monkeypatch):
    """Stands for medsyn-tiny."""
    folder = make_pipeline(tmp_path / "medsyn-tiny")
    monkeypatch.setattr(embedded_model, "EMBEDDED_MODEL_DIR", folder)
    return folder


def form_data(form, **changes) -> dict:
    """What a browser would send if only ``changes`` were typed."""
    initial = {name: form.get_initial_for_field(field, name) for name, field in form.fields.items()}
    values = {**initial, **changes}
    return {name: value for name, value in values.items() if value is not None and value is not False}


# --- a new selector and policy ---


def test_every_key_of_the_configuration_has_a_field():
    settled = {"model_paths.stable_diffusion", "data.ratings_file", "training.checkpoints.save_dir"}
    keys = [setting.key for setting in settings_of()]
    assert set(keys) == set(known_keys()) - settled
    assert set(IMPORTANT) <= set(keys)


def test_the_untouched_form_is_the_default_configuration(study, generator):
    form = RLHFRunForm(form_data(RLHFRunForm(), study=str(study.public_id)))
    assert form.is_valid(), form.errors
    assert form.cleaned_data["config"] == RLHFConfig()


def test_the_form_explains_its_keys_with_the_comments_of_the_file(staff, generator):
    page = staff.get("/training/new/rlhf/").content.decode()
    assert escape("Images the selector scores lower leave the policy's training [0, 1]") in page
    assert "such as microsoft/BiomedNLP-BiomedBERT" in page  # from the lines above the key


def test_a_study_is_frozen_into_an_export_and_trained_on(staff, alice, study, generator):
    changes = {"study": str(study.public_id), "name": "Pilot", "training.max_epochs": "7"}
    changes |= {"data.augmentation.contrast_range": "0.9, 1.1", "device.use_cuda": None}
    answer = staff.post("/training/new/rlhf/", form_data(RLHFRunForm(), **changes))
    run = TrainingRun.objects.get()
    assert (answer.status_code, answer.url) == (302, run.get_absolute_url())
    assert (run.name, run.created_by, run.export.study, run.export.row_count) == ("Pilot", alice, study, 3)
    assert run.config["training"]["max_epochs"] == 7
    assert run.config["data"]["augmentation"]["contrast_range"] in ([0.9, 1.1], (0.9, 1.1))
    assert run.config["device"]["use_cuda"] is False
    assert run.generator == str(generator)


def test_an_existing_export_is_trained_on_with_a_fine_tuned_generator(staff, study, generator):
    finetuned = make_run(Purpose.FINETUNE, config={}, state=State.SUCCEEDED)
    pipeline = make_pipeline(finetuned.path / "pipeline")
    export = freeze_export(study=study)
    data = form_data(RLHFRunForm(), export=export.pk, generator=str(pipeline))
    assert staff.post("/training/new/rlhf/", data).status_code == 302
    run = TrainingRun.objects.get(purpose=Purpose.RLHF)
    assert (run.export, run.generator) == (export, str(pipeline))
    assert Export.objects.count() == 1


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("training.max_epochs", "0", "training.max_epochs is 0: must lie between 1 and 100000"),
        ("training.max_epochs", "many", "training.max_epochs is 'many': must be a whole number"),
        ("training.stage1.learning_rate", "2", "must lie between 1e-08 and 1"),
        ("training.stage2.learning_rate", "fast", "must be a number"),
        ("data.augmentation.contrast_range", "1.2, 0.8", "the smaller factor comes first"),
        ("data.augmentation.contrast_range", "1", "give a list of 2 numbers"),
        ("selector.architecture.num_heads", "3", "num_heads 3 does not divide embed_dim"),
        ("synthetic_system.image_size", "256, 128", "the scorers read square images"),
        ("raters.min_expert_level", "4", "must lie between 1 and 3"),
    ],
)
def test_a_fault_stands_at_its_key_and_what_was_typed_stays(staff, study, generator, key, value, text):
    data = form_data(RLHFRunForm(), **{"study": str(study.public_id), "name": "Kept", key: value})
    answer = staff.post("/training/new/rlhf/", data)
    form = answer.context["form"]
    assert answer.status_code == 422
    assert list(form.errors) == [key]
    assert text in form.errors[key][0]
    page = answer.content.decode()
    assert escape(value) in page and "Kept" in page
    assert form.has_hidden_errors() == (key not in IMPORTANT)
    assert not TrainingRun.objects.exists() and not Export.objects.exists()


def test_one_source_of_ratings_must_be_chosen(staff, study, generator):
    export = freeze_export(study=study)
    for sources in ({}, {"study": str(study.public_id), "export": export.pk}):
        answer = staff.post("/training/new/rlhf/", form_data(RLHFRunForm(), **sources))
        assert "either a study or an export" in answer.context["form"].errors["study"][0]


def test_an_export_without_its_file_is_told_on_the_form(staff, study, generator):
    export = freeze_export(study=study)
    export.path.unlink()
    answer = staff.post("/training/new/rlhf/", form_data(RLHFRunForm(), export=export.pk))
    assert answer.status_code == 422
    assert "is gone" in answer.context["form"].non_field_errors()[0]


# --- a new fine-tuning ---


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes(1))
    path = tmp_path / "data.csv"
    path.write_text("path,Text,modality\na.png,OCT: drusen,OCT\n")
    return path


def test_fine_tuning_is_started_with_what_was_typed(staff, dataset, generator, artifact_root):
    changes = {"train_data_dir": str(dataset), "max_train_steps": "50", "random_flip": "on"}
    changes["validation_prompts"] = "OCT: drusen\n\nBrain MRI: normal\n"
    answer = staff.post("/training/new/finetune/", form_data(FinetuneForm(), **changes))
    run = TrainingRun.objects.get()
    assert answer.url == run.get_absolute_url()
    assert (run.purpose, run.progress_total, run.generator) == (Purpose.FINETUNE, 50, "medsyn-tiny")
    assert run.config["validation_prompts"] == ["OCT: drusen", "Brain MRI: normal"]
    assert (run.config["random_flip"], run.config["resolution"], run.config["learning_rate"]) == (True, None, 1e-4)
    assert run.path.parent == artifact_root / "finetuning"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("learning_rate", "0", "must be above 0"),
        ("train_batch_size", "0", "at least 1"),
        ("caption_dropout", "1.5", "from 0 to 1"),
        ("max_train_steps", "some", "whole number"),
        ("validation_prompts", "a heart", "--validation_prompts"),
        ("pretrained_model_name_or_path", "/nowhere", "no pipeline folder"),
        ("train_data_dir", "/nowhere.csv", "There is no dataset CSV"),
        ("resume_from_checkpoint", "/nowhere", "no checkpoint folder"),
    ],
)
def test_a_wrong_flag_is_told_at_its_field(staff, dataset, generator, key, value, text):
    data = form_data(FinetuneForm(), **{"train_data_dir": str(dataset), key: value})
    answer = staff.post("/training/new/finetune/", data)
    assert answer.status_code == 422
    assert list(answer.context["form"].errors) == [key]
    assert text in answer.context["form"].errors[key][0]
    assert not TrainingRun.objects.exists()


# --- what it will cost ---


def test_the_cost_follows_what_is_typed(staff, study, generator):
    url = reverse("training:cost", args=["rlhf"])
    short, long = (
        staff.post(
            url, form_data(RLHFRunForm(), study=str(study.public_id), **{"training.max_epochs": epochs})
        ).json()
        for epochs in ("10", "20")
    )
    assert short["seconds"] < long["seconds"] and short["bytes"] < long["bytes"]
    export = freeze_export(study=study)
    assert staff.post(url, form_data(RLHFRunForm(), export=export.pk)).json()["seconds"] > 0
    export.path.unlink()
    assert str(export.path) in staff.post(url, form_data(RLHFRunForm(), export=export.pk)).json()["problem"]
    assert "either a study or an export" in staff.post(url, form_data(RLHFRunForm())).json()["problem"]
    assert staff.post(reverse("training:cost", args=["tea"])).status_code == 404
    assert not TrainingRun.objects.exists()


def test_the_cost_of_fine_tuning_needs_a_dataset(staff, dataset, generator):
    url = reverse("training:cost", args=["finetune"])
    told = staff.post(url, form_data(FinetuneForm(), train_data_dir=str(dataset), max_train_steps="10")).json()
    assert told["seconds"] > 0 and "figures of one busy core" in told["basis"]
    assert (
        "There is no dataset CSV"
        in staff.post(url, form_data(FinetuneForm(), train_data_dir="/none")).json()["problem"]
    )
