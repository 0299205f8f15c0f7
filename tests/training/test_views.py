"""Pages of training: who may see them, what they show, and what comes of their forms."""

import uuid
from pathlib import Path

import pytest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from generation import embedded_model
from generation.services import active_release
from ratings.models import Export
from ratings.services import create_study, enrol_reader, freeze_export, submit_rating
from tests.factories import GeneratedImageFactory, GenerationJobFactory, png_bytes
from tests.training.runs import Purpose, State, make_checkpoint, make_pipeline, make_run
from training.config_fields import IMPORTANT, settings_of
from training.forms import FinetuneForm, RLHFRunForm
from training.models import TrainingRun
from training.rlhf.config import RLHFConfig, known_keys
from training.run_directory import RunDirectory

pytestmark = pytest.mark.django_db
FIGURES = {
    "checkpoint": "best",
    "selector": {"auc_poor": {"value": 0.886, "low": 0.845, "high": 0.927}, "brier": {"value": 0.131, "low": None}},
    "pass_rate": 0.73,
    "counts": {"ratings": 640, "held_out": 36, "by_grade": {"1": 190}},
    "raters": [{"rater": "anne", "overlap": 12, "confusion": [[0.8, 0.1, 0.1], [0, 1, 0], [0, 0, 1]]}],
    "seconds": 812.4,
}


@pytest.fixture
def staff(alice, signed_in):
    return signed_in(alice)


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


# --- the list ---


def test_an_empty_list_says_what_to_do_next(staff):
    page = staff.get("/training/").content.decode()
    assert "No runs yet" in page and reverse("training:new-rlhf") in page


def test_the_list_filters_sorts_and_pages(staff):
    for number in range(30):
        make_run(name=f"Selector {number:02}", state=State.FAILED if number % 3 else State.SUCCEEDED)
    make_run(Purpose.FINETUNE, name="Fundus", config={}, figures={"last_loss": 0.12})
    names = lambda query: [str(run) for run, *_ in staff.get("/training/" + query).context["rows"]]  # noqa: E731
    assert names("")[0] == "Fundus" and len(names("")) == 25 and len(names("?page=2")) == 6
    assert names("?purpose=finetune") == ["Fundus"]
    assert names("?state=succeeded&sort=name")[:2] == ["Selector 00", "Selector 03"]
    assert names("?q=selector+1&sort=-name")[0] == "Selector 19"
    assert "No run fits" in staff.get("/training/?q=nothing").content.decode()
    assert staff.get("/training/?purpose=nonsense").context["rows"] == []
    assert "0.1200" in staff.get("/training/?purpose=finetune").content.decode()


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
    assert escape("images the selector scores lower leave the policy's training [0, 1]") in page
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


# --- one run ---


def test_a_running_run_shows_where_it_stands(staff):
    run = make_run(state=State.RUNNING, progress_done=3, progress_total=8, progress_unit="steps", is_simulated=True)
    directory = RunDirectory(run.path)
    directory.log(step=3, epoch=2, stage=1, policy_loss=0.5, device="cuda:0")
    (run.path / "log.txt").write_text("<b>epoch 2</b>\n")
    page = staff.get(run.get_absolute_url()).content.decode()
    for text in ("1 of 2", "2 of 100", "cuda:0", "simulated", "3 / 8 steps", "&lt;b&gt;epoch 2", 'data-poll="5"'):
        assert text in page
    assert reverse("training:cancel", args=[run.pk]) in page
    assert reverse("training:resume", args=[run.pk]) not in page
    assert 'id="release"' not in page

    answer = staff.get(reverse("training:progress", args=[run.pk])).json()
    assert (answer["state"], answer["done"], answer["total"], answer["epoch"]) == ("running", 3, 8, "2 of 100")
    assert answer["log"] == "<b>epoch 2</b>"


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("state", State)
def test_a_run_of_any_kind_and_state_has_a_page(staff, purpose, state):
    run = make_run(purpose, state=state, figures=FIGURES if purpose == Purpose.RLHF else {"steps": 5})
    assert staff.get(run.get_absolute_url()).status_code == 200


def test_a_finished_run_shows_its_figures(staff):
    run = make_run(state=State.SUCCEEDED, figures=FIGURES)
    page = staff.get(run.get_absolute_url()).content.decode()
    for text in (
        "0.886",
        "0.845 – 0.927",
        "73",
        "36 held-out images",
        "anne",
        "Ratings that say poor",
        "data-seconds",
    ):
        assert text in page


def full_report(image_sha256: str) -> dict:
    """As training.rlhf.train writes it, in small."""
    interval = {"value": 0.8, "low": 0.7, "high": 0.9}
    reliable = {"low": 0.6, "high": 0.7, "count": 8, "mean": 0.66, "observed": 0.75}
    passing = {"threshold": 0.6, "selector": 0.5, "both": 0.4, "poor_selector": 0.2, "poor_both": 0.1}
    wrong = {"prompt": "OCT: drusen", "grades": [1, 1], "selector": 0.9, "policy": 0.8, "why": "passes, rated poor"}
    histogram = {"edges": [0, 0.5, 1], "by_grade": {"1": [3, 1], "2": [2, 2], "3": [0, 9]}}
    return {
        **FIGURES,
        "human_ceiling_auc_poor": interval,
        "reliability": {"selector": [{**reliable, "observed_low": 0.4, "observed_high": 0.9}]},
        "histograms": {"selector": histogram, "policy": histogram},
        "pass_curve": [passing],
        "worst": [
            {**wrong, "image_path": "a.png", "image_sha256": image_sha256},
            {**wrong, "image_path": "b.png", "image_sha256": "0" * 64, "why": "fails, rated excellent"},
        ],
        "data": {"ratings_file_sha256": "ab" * 32, "ratings": 640, "raters": 3, "rater_source": "tidy file",
                 "left_out": {"repeat": 12, "real": 0}},
        "raters": [{"rater": "R-1", "level": 2, "overlap": 12, "ratings": 40, "accuracy": 0.8, "kappa": 0.61,
                    "confusion": [[0.8, 0.1, 0.1], [0, 1, 0], [0, 0, 1]], "is_prior": True}],
        "timing": {"stage1": 30.0, "read": 10.0},
        "stopped_early": {"epoch": 31, "reason": "no better network for 20 epochs"},
    }  # fmt: skip


def test_a_full_report_is_drawn_with_its_numbers(staff):
    image = GeneratedImageFactory()
    run = make_run(state=State.SUCCEEDED, figures=full_report(image.sha256))
    answer = staff.get(run.get_absolute_url())
    page = answer.content.decode()
    for text in (
        "Reliability diagram", "Selector: score by grade", "40 % of the held-out images pass", "10 % of the ratings",
        "Passes, rated poor", "Not among the images here", "kappa 0.61", "their level lets expect", "ab" * 32,
        "12 repeat", "Stopped early after epoch 31", "Reading the images", 'class="ceiling"',
    ):  # fmt: skip
        assert text in page, text
    assert page.count(image.get_absolute_url() + '"') == 1
    assert [each.image for each in answer.context["mistakes"]] == [image, None]
    assert "0 real" not in page
    assert [each.seconds for each in answer.context["timing"]] == [10, 30]


def test_the_report_is_downloaded_as_it_was_written(staff):
    run = make_run(state=State.SUCCEEDED, figures={"pass_rate": 0.5})
    url = reverse("training:report", args=[run.pk])
    assert staff.get(url).json() == {"pass_rate": 0.5}  # the row's, where the folder is gone
    (run.path / "report.json").write_bytes(b'{"pass_rate":   0.5}\n')
    answer = staff.get(url)
    assert answer.content == b'{"pass_rate":   0.5}\n'
    assert f'attachment; filename="run-{run.pk}-report.json"' in answer["Content-Disposition"]
    assert staff.get(reverse("training:report", args=[make_run().pk])).status_code == 404


def test_a_waiting_run_says_what_it_waits_for(staff):
    at_work = make_run(name="Long one", state=State.RUNNING, device="hall/cuda:0", heartbeat_at=timezone.now())
    first, second = make_run(), make_run()
    GenerationJobFactory(state=State.RUNNING)
    page = staff.get(second.get_absolute_url()).content.decode()
    assert (
        f"Place 2 of 2 in the queue. A device trains one run at a time; at work: run {at_work.pk} (Long one)" in page
    )
    assert "cuda:0 of hall" in page and "1 generation drawing" in page
    listed = staff.get("/training/").content.decode()
    assert "place 1" in listed and "place 2" in listed and "place 3" not in listed and "cuda:0 of hall" in listed
    assert staff.get(reverse("training:progress", args=[at_work.pk])).json()["queue"] == ""
    TrainingRun.objects.filter(pk=at_work.pk).update(state=State.SUCCEEDED)
    assert "takes the next one in a moment" in staff.get(first.get_absolute_url()).content.decode()
    TrainingRun.objects.filter(pk=first.pk).update(queued_at=timezone.now() - timezone.timedelta(hours=1))
    assert "no worker takes it" in staff.get(first.get_absolute_url()).content.decode()


def test_the_process_knows_best_how_long_it_takes(staff):
    run = make_run(state=State.RUNNING, progress_done=1, progress_total=2, started_at=timezone.now())
    RunDirectory(run.path).log(step=1, epoch=1, seconds_left=754.6, device="cpu")
    TrainingRun.objects.filter(pk=run.pk).update(device="hall/cpu")
    answer = staff.get(reverse("training:progress", args=[run.pk])).json()
    assert (answer["eta_seconds"], answer["device"]) == (755, "cpu of hall")
    assert 'data-eta-seconds="755"' in staff.get(run.get_absolute_url()).content.decode()


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


def test_an_unfinished_run_is_followed_a_finished_one_is_not(staff):
    assert 'data-poll="5"' not in staff.get(make_run(state=State.FAILED).get_absolute_url()).content.decode()


def test_charts_are_json_and_unknown_ones_do_not_exist(staff):
    run = make_run(state=State.RUNNING)
    RunDirectory(run.path).log(step=12, epoch=1, policy_loss=0.5, selector_loss=1.5, policy_validation_loss=0.6)
    data = staff.get(reverse("training:chart", args=[run.pk, "losses"])).json()
    assert data["x"] == [1]
    assert [(line["label"], line["values"], line["dash"]) for line in data["series"]] == [
        ("Policy", [0.5], False),
        ("Selector", [1.5], False),
        ("Policy validation", [0.6], True),
    ]
    assert staff.get(reverse("training:chart", args=[run.pk, "speed"])).status_code == 404
    assert staff.get(reverse("training:chart", args=[run.pk + 1, "losses"])).status_code == 404


def test_cancel_and_resume(staff):
    run = make_run(state=State.RUNNING)
    answer = staff.post(reverse("training:cancel", args=[run.pk]), follow=True)
    assert "was asked to stop" in answer.content.decode() and "Stopping" in answer.content.decode()
    TrainingRun.objects.filter(pk=run.pk).update(state=State.CANCELLED)
    answer = staff.post(reverse("training:resume", args=[run.pk]), follow=True)
    run.refresh_from_db()
    assert (run.state, run.cancel_requested) == (State.QUEUED, False)
    assert "it has none" not in answer.content.decode()
    assert "Only a failed or cancelled run" in (
        staff.post(reverse("training:resume", args=[run.pk]), follow=True).content.decode()
    )
    staff.post(reverse("training:cancel", args=[run.pk]))
    run.refresh_from_db()
    assert run.state == State.CANCELLED
    again = staff.post(reverse("training:cancel", args=[run.pk]), follow=True)
    assert again.status_code == 200


# --- validation images ---


@pytest.fixture
def finetuned():
    run = make_run(Purpose.FINETUNE, config={"validation_prompts": ["OCT: drusen"]}, state=State.SUCCEEDED)
    (run.path / "validation").mkdir()
    for step in (500, 1000):
        (run.path / "validation" / f"step_{step}.png").write_bytes(png_bytes(step))
    return run


def test_validation_images_are_shown_newest_first_and_labelled(staff, finetuned):
    answer = staff.get(finetuned.get_absolute_url())
    assert answer.context["validation_steps"] == [1000, 500]
    assert "procedural phantom" in answer.content.decode()
    picture = staff.get(reverse("training:validation", args=[finetuned.pk, 500]))
    assert b"".join(picture.streaming_content) == png_bytes(500)
    assert picture["Content-Type"] == "image/png" and "private" in picture["Cache-Control"]


def test_no_other_file_can_be_asked_for(staff, finetuned, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (finetuned.path / "validation" / "step_7.png").symlink_to(tmp_path / "secret.png")
    base = f"/training/{finetuned.pk}/validation/"
    for name in ("7.png", "8.png", "../config.json", "..%2fconfig.json", "step_500.png", "-500.png", "500.png/.."):
        assert staff.get(base + name).status_code == 404, name


# --- release ---


@pytest.fixture
def trained(tmp_path):
    run = make_run(state=State.SUCCEEDED, generator=str(make_pipeline(tmp_path / "pipeline")))
    make_checkpoint(run, 5)
    make_checkpoint(run, 10)
    return run


def test_a_run_is_released_from_its_page(staff, trained):
    url = reverse("training:release", args=[trained.pk])
    first = trained.checkpoints.first()
    data = {"checkpoint": first.pk, "quality_threshold": "0.7", "name": "June", "activate": "on"}
    answer = staff.post(url, data, follow=True)
    release = active_release()
    assert (release.name, release.quality_threshold, release.manifest["checkpoint"]) == ("June", 0.7, "epoch_5")
    page = answer.content.decode()
    assert "is served from now on" in page and reverse("generation:releases") in page


def test_a_release_that_is_refused_says_why_at_the_form(staff, trained):
    url = reverse("training:release", args=[trained.pk])
    assert (
        "quality_threshold" in staff.post(url, {"quality_threshold": "7", "name": "x"}).context["release_form"].errors
    )
    (trained.checkpoints.last().path / "policy_checkpoint.safetensors").write_text("changed")
    answer = staff.post(url, {"quality_threshold": "0.5", "name": "Typed"})
    assert answer.status_code == 422
    assert "is changed" in answer.content.decode() and "Typed" in answer.content.decode()
    assert active_release() is None


def test_the_checkpoint_of_another_run_cannot_be_released(staff, trained, tmp_path):
    other = make_run(state=State.SUCCEEDED)
    foreign = make_checkpoint(other, 3)
    data = {"checkpoint": foreign.pk, "quality_threshold": "0.5", "name": "x"}
    answer = staff.post(reverse("training:release", args=[trained.pk]), data)
    assert "checkpoint" in answer.context["release_form"].errors


def test_what_is_no_finished_selector_run_is_not_released(staff, finetuned):
    for run in (finetuned, make_run(state=State.RUNNING), make_run(state=State.SUCCEEDED)):
        answer = staff.post(reverse("training:release", args=[run.pk]), {"name": "x"}, follow=True)
        assert "Only a finished selector-and-policy run" in answer.content.decode()


# --- update of the generator ---


def test_a_finished_run_updates_its_generator_once(staff, trained, alice):
    (Path(trained.generator) / "model_index.json").write_text('{"draws_phantoms": true}')
    url = reverse("training:update", args=[trained.pk])
    assert url in staff.get(trained.get_absolute_url()).content.decode()
    answer = staff.post(url)
    update = TrainingRun.objects.get(purpose=Purpose.UPDATE)
    assert answer.url == update.get_absolute_url() == staff.post(url).url
    assert (update.state, update.created_by, update.generator) == (State.QUEUED, alice, trained.generator)
    assert update.config["quality_threshold"] == trained.config["generation"]["quality_threshold"]
    assert update.config["selector_file"] == str(trained.path / "epoch_10" / "selector_checkpoint.safetensors")
    assert str(update) in staff.get("/training/?purpose=update").content.decode()


def test_what_cannot_update_a_generator_says_why(staff, trained, finetuned):
    answer = staff.post(reverse("training:update", args=[trained.pk]), follow=True)
    assert "Which dataset the generator" in answer.content.decode()
    for run in (finetuned, make_run(state=State.RUNNING)):
        assert reverse("training:update", args=[run.pk]) not in staff.get(run.get_absolute_url()).content.decode()
        answer = staff.post(reverse("training:update", args=[run.pk]), follow=True)
        assert "Only a training of selector and policy that has succeeded" in answer.content.decode()
    assert not TrainingRun.objects.filter(purpose=Purpose.UPDATE).exists()


# --- administration ---


def test_administration_shows_runs_and_changes_none(staff, trained):
    for name, key in (("trainingrun", trained.pk), ("checkpoint", trained.checkpoints.first().pk)):
        assert staff.get(f"/admin/training/{name}/").status_code == 200
        assert staff.get(f"/admin/training/{name}/{key}/change/").status_code == 200
        assert staff.get(f"/admin/training/{name}/add/").status_code == 403
        assert staff.post(f"/admin/training/{name}/{key}/delete/", {"post": "yes"}).status_code == 403
