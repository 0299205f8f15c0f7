"""What comes of a finished run on its page: a release, an update of its generator; and that nobody edits its row."""

from pathlib import Path

import pytest
from django.urls import reverse

from generation.services import active_release
from tests.training.runs import Purpose, State, make_checkpoint, make_pipeline, make_run
from training.models import TrainingRun

pytestmark = pytest.mark.django_db


@pytest.fixture
def finetuned():
    return make_run(Purpose.FINETUNE, config={}, state=State.SUCCEEDED)


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
