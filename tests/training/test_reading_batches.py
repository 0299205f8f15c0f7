"""The next images of a study: chosen in a worker with a release's selector, explained, the same when asked again."""

from collections import Counter

import pytest
import torch
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from generation.models import GeneratedImage
from generation.scoring.architecture import SelectorArchitecture
from generation.scoring.selector import Selector, SelectorConfig
from generation.services import SELECTOR_NAME
from medsyn.artifacts import file_sha256
from medsyn.jobs import JobLost, execute
from ratings.models import Assignment, StudyImage
from ratings.services import StudyError, create_study, describe_study, enrol_reader, revise_protocol, set_gold
from tests.factories import (
    GeneratedImageFactory,
    GenerationJobFactory,
    PromptFactory,
    StudyFactory,
    StudyOwnerFactory,
)
from tests.generation.small_releases import make_release
from tests.ratings.calibration_world import make_plan
from training import tasks
from training.models import ReadingBatch, ReadingPick
from training.reading import choice as reading_choice
from training.reading.services import candidates, plan_batch

pytestmark = pytest.mark.django_db
State, Reason = ReadingBatch.State, ReadingPick.Reason
TINY = SelectorArchitecture(
    patch_size=8, stem="patch", embed_dim=8, num_layers=1, num_heads=2, mlp_dim=8, pretrained=None, perception_dim=4
)


@pytest.fixture
def owner(db):
    return StudyOwnerFactory(username="owner")


@pytest.fixture
def study(owner, bob):
    return create_study(name="Pilot", images=(), readers=[(bob, 2)], order_seed=3, created_by=owner)


@pytest.fixture
def release():
    """An active one, whose selector has random weights: its heads disagree, about nothing in particular."""
    made = make_release("chooser", active=True)
    torch.manual_seed(0)
    selector = Selector(SelectorConfig(16, TINY))
    torch.nn.init.normal_(selector.heads.linear_weight, std=0.5)
    selector.save(made.folder / SELECTOR_NAME)
    made.selector_sha256 = file_sha256(made.folder / SELECTOR_NAME)
    made.save()
    return made


@pytest.fixture
def job(db):
    """Thirty images, two thirds of them of the fundus."""
    made = GenerationJobFactory()
    for number in range(30):
        text = "OCT: drusen" if number % 3 == 0 else "Fundus: drusen"
        GeneratedImageFactory(job=made, prompt=PromptFactory(text=text), position=number)
    return made


def run(batch: ReadingBatch) -> ReadingBatch:
    assert execute(ReadingBatch, batch.pk, reading_choice.run)
    batch.refresh_from_db()
    return batch


def test_a_batch_becomes_a_block_of_the_study_and_says_why(study, job, release, bob):
    batch = run(plan_batch(study=study, jobs=[job], num_images=10, random_share=0.4, seed=5))
    assert (batch.state, batch.error, batch.block) == (State.SUCCEEDED, "", 0)
    assert batch.release == release and batch.pool == sorted(job.images.values_list("pk", flat=True))
    picks = list(batch.picks.all())
    assert Counter(pick.reason for pick in picks) == {Reason.RANDOM: 4, Reason.MODEL: 5, Reason.EXPLORING: 1}
    assert {pick.image_id for pick in picks} == set(study.study_images.values_list("image_id", flat=True))
    assert study.assignments.filter(reader=bob, kind=Assignment.Kind.MAIN).count() == 10


def test_stored_are_what_the_selector_says_and_its_disagreement(study, job, release):
    batch = run(plan_batch(study=study, jobs=[job], num_images=10, random_share=0.4))
    selector = Selector.load(release.folder / SELECTOR_NAME)
    for pick in batch.picks.select_related("image__prompt"):
        picture = pil_to_tensor(Image.open(pick.image.path))[None].float() / 255
        score = selector.score(picture, [pick.image.prompt.kind])
        assert pick.poor == pytest.approx(1 - score.mean.item(), abs=1e-5)
        # Pinsker: heads whose scores differ by sd s share at least 2 s^2 nats with the verdict.
        assert pick.information >= 2 * score.std.item() ** 2 - 1e-6


def test_the_choice_can_be_made_again_from_the_row(study, job, release):
    batch = run(plan_batch(study=study, jobs=[job], num_images=10, random_share=0.4, seed=8))
    images = GeneratedImage.objects.select_related("prompt").in_bulk(batch.pool)
    ReadingBatch.objects.filter(pk=batch.pk).update(state=State.RUNNING)  # scoring reports to a row at work
    again, _, _ = reading_choice.choose(ReadingBatch.objects.get(pk=batch.pk), [images[key] for key in batch.pool])
    stored = [(pick.image_id, pick.reason) for pick in batch.picks.all()]
    assert [(batch.pool[pick.item], pick.reason) for pick in again] == stored


def test_calibration_images_are_drawn_from_the_random_ones_alone(study, job, release):
    revise_protocol(study=study, created_by=study.created_by, calibration_share=0.4)
    batch = run(plan_batch(study=study, jobs=[job], num_images=10, random_share=0.4))
    role = dict(study.study_images.values_list("image_id", "role"))
    for pick in batch.picks.all():
        expected = StudyImage.Role.CALIBRATION if pick.reason == Reason.RANDOM else StudyImage.Role.MAIN
        assert role[pick.image_id] == expected
    with pytest.raises(StudyError, match="keeps 40\u00a0% of new images for calibration"):
        plan_batch(study=study, jobs=[job], num_images=10, random_share=0.3)


def test_where_all_is_random_no_model_is_asked(study, job):
    batch = run(plan_batch(study=study, jobs=[job], num_images=6, random_share=1))
    assert batch.release is None and batch.is_random and batch.state == State.SUCCEEDED
    assert set(batch.picks.values_list("reason", "information", "poor")) == {(Reason.RANDOM, None, None)}


def test_the_pool_is_what_nobody_was_to_rate(study, job, alice):
    images = list(job.images.order_by("pk"))
    other = create_study(name="Other", images=images[:2], anchors={1: images[2]})
    set_gold(image=images[3], grade=2, set_by=alice)
    GeneratedImage.objects.filter(pk=images[4].pk).update(verdict="rejected", selector_score=0.1, policy_score=0.1)
    assert other.images.count() == 2
    free = candidates(study=study, jobs=[job])
    assert list(free) == images[4:]
    assert list(candidates(study=study, jobs=[job], with_rejected=False)) == images[5:]
    elsewhere = GeneratedImageFactory()
    assert elsewhere not in free


def test_copies_of_patients_are_in_no_pool(study, job):
    blocked = job.images.first()
    GeneratedImage.objects.filter(pk=blocked.pk).update(verdict="blocked", resembles={"name": "a.png"})
    assert blocked not in candidates(study=study, jobs=[job]) and candidates(study=study, jobs=[job]).count() == 29


def test_asking_rings_a_worker_that_no_training_keeps_busy(
    study, job, monkeypatch, django_capture_on_commit_callbacks
):
    task, rung = tasks.choose_reading_batch, []
    monkeypatch.setattr(task, "delay", rung.append)
    with django_capture_on_commit_callbacks(execute=True):
        batch = plan_batch(study=study, jobs=[job], num_images=2, random_share=1)
    assert rung == [batch.pk]
    task(batch.pk)
    batch.refresh_from_db()
    assert batch.state == State.SUCCEEDED
    assert task.app.amqp.router.route({}, task.name)["queue"].name == "generation"
    ReadingBatch.objects.filter(pk=batch.pk).update(state=State.QUEUED)  # the broker lost its message
    tasks.sweep_training_runs()
    assert rung == [batch.pk, batch.pk]


def test_what_cannot_be_chosen_is_refused_at_once(study, job):
    ask = {"study": study, "jobs": [job], "num_images": 10}
    with pytest.raises(StudyError, match="No release is active"):
        plan_batch(**ask, random_share=0.4)
    ask["random_share"] = 1
    with pytest.raises(StudyError, match="30 images that nobody was to rate yet; 31 are to be chosen"):
        plan_batch(**ask | {"num_images": 31})
    with pytest.raises(StudyError, match="random_share is 2"):
        plan_batch(**ask | {"random_share": 2})
    drawn = StudyFactory(name="Drawn")
    make_plan(make_release("frozen"), drawn)
    with pytest.raises(StudyError, match="Drawn is a calibration study"):
        plan_batch(**ask | {"study": drawn})
    plan_batch(**ask)
    with pytest.raises(StudyError, match="A batch is being chosen for Pilot already"):
        plan_batch(**ask)
    describe_study(study=study, is_open=False)
    with pytest.raises(StudyError, match="Pilot is closed"):
        plan_batch(**ask)


def test_the_database_keeps_a_batch_from_having_no_chooser_and_a_pick_from_having_no_reason(study, job):
    batch = plan_batch(study=study, jobs=[job], num_images=2, random_share=1)
    with pytest.raises(IntegrityError), transaction.atomic():
        ReadingBatch.objects.filter(pk=batch.pk).update(random_share=0.5)
    with pytest.raises(IntegrityError), transaction.atomic():
        ReadingPick.objects.create(batch=batch, image=job.images.first(), position=0, reason=Reason.MODEL)


def test_images_that_come_into_use_meanwhile_are_not_taken(study, job, release, monkeypatch):
    batch = plan_batch(study=study, jobs=[job], num_images=30, random_share=0.4)
    score = reading_choice.score

    def scored_while_another_study_is_made(*args):
        create_study(name="Quicker", images=[job.images.first()])
        return score(*args)

    monkeypatch.setattr(reading_choice, "score", scored_while_another_study_is_made)
    assert run(batch).state == State.FAILED and "1 of the chosen images came into use meanwhile" in batch.error
    assert not study.study_images.exists() and not batch.picks.exists() and batch.block is None


def test_a_study_that_was_closed_meanwhile_gets_nothing(study, job):
    batch = plan_batch(study=study, jobs=[job], num_images=3, random_share=1)
    describe_study(study=study, is_open=False)
    assert run(batch).state == State.FAILED and "Pilot is closed" in batch.error
    assert not study.study_images.exists()


def test_a_worker_that_died_after_storing_chooses_no_second_time(study, job):
    batch = run(plan_batch(study=study, jobs=[job], num_images=3, random_share=1))
    chosen = set(study.images.all())
    ReadingBatch.objects.filter(pk=batch.pk).update(state=State.QUEUED)
    assert run(batch).state == State.SUCCEEDED
    assert set(study.images.all()) == chosen and len(chosen) == 3


def test_a_worker_that_lost_its_claim_stores_nothing(study, job):
    batch = plan_batch(study=study, jobs=[job], num_images=3, random_share=1)
    slow = ReadingBatch.claim(batch.pk)
    ReadingBatch.objects.filter(pk=batch.pk).update(state=State.QUEUED)
    ReadingBatch.claim(batch.pk)
    with pytest.raises(JobLost):
        reading_choice.run(slow)
    assert not study.study_images.exists()


def test_a_selector_that_is_not_the_recorded_one_chooses_nothing(study, job, release):
    batch = plan_batch(study=study, jobs=[job], num_images=3, random_share=0)
    (release.folder / SELECTOR_NAME).write_bytes(b"other")
    assert run(batch).state == State.FAILED and "has changed on the disk" in batch.error
    again = plan_batch(study=study, jobs=[job], num_images=3, random_share=0)
    (release.folder / SELECTOR_NAME).unlink()
    assert run(again).state == State.FAILED and "cannot be read" in again.error


def test_a_cancelled_batch_adds_nothing(study, job, release):
    batch = plan_batch(study=study, jobs=[job], num_images=3, random_share=0)
    batch.request_cancel()
    assert batch.state == State.CANCELLED
    assert not execute(ReadingBatch, batch.pk, reading_choice.run) and not study.study_images.exists()


def test_by_page(study, job, release, owner, signed_in):
    browser, address = signed_in(owner), f"/studies/{study.public_id}/batches/"
    assert f'href="{address}"' in browser.get(f"/studies/{study.public_id}/images/").content.decode()
    page = browser.get(address).content.decode()
    assert "30 free images" in page and "The active one: chooser" in page
    refused = browser.post(address, {"jobs": [job.pk], "num_images": 99, "random_share": 0.4})
    assert refused.status_code == 422 and "99 are to be chosen" in refused.content.decode()
    asked = browser.post(address, {"jobs": [job.pk], "num_images": 10, "random_share": 0.4, "with_rejected": "on"})
    batch = ReadingBatch.objects.get()
    assert asked.url == batch.get_absolute_url() and (batch.created_by, batch.with_rejected) == (owner, True)
    assert browser.get(f"{asked.url}progress/").json()["state"] == "queued"
    assert 'data-confirm="No image is added to the study' in browser.get(asked.url).content.decode()
    run(batch)
    page = browser.get(asked.url).content.decode()
    heads, random = "The selector&#x27;s heads disagree", "Drawn at random from the pool"
    assert page.count(heads) == 5 + 1 and page.count(random) == 4 + 1  # the images, and the count above them
    assert f"Batch {batch.pk}</a>" in browser.get(address).content.decode()


def test_who_has_images_left_to_rate_is_not_told_what_the_model_thinks(study, job, release, owner, api, signed_in):
    enrol_reader(study=study, reader=owner, expert_level=2)
    batch = run(plan_batch(study=study, jobs=[job], num_images=10, random_share=0.4))
    address = f"/api/studies/{study.public_id}/reading-batches/{batch.pk}/"
    page = signed_in(owner).get(batch.get_absolute_url()).content.decode()
    assert "Grades are hidden" in page and "nats" not in page
    assert api(owner).get(address).json()["picks"] is None
    assert "nats" in signed_in(owner).get(f"{batch.get_absolute_url()}?show=1").content.decode()
    assert len(api(owner).get(f"{address}?show=1").json()["picks"]) == 10


def test_by_api(study, job, release, owner, api, mallory, bob):
    speaker, address = api(owner), f"/api/studies/{study.public_id}/reading-batches/"
    body = {"jobs": [job.pk], "num_images": 10, "random_share": 0.4, "seed": 4, "release": release.digest}
    assert speaker.post(address, body | {"num_images": 50}, format="json").json()["detail"]
    made = speaker.post(address, body, format="json")
    assert made.status_code == 201 and made.json()["state"] == "queued" and made.json()["seed"] == 4
    batch = run(ReadingBatch.objects.get())
    assert speaker.get(address).json()["results"][0]["block"] == 0
    picks = speaker.get(f"{address}{batch.pk}/").json()["picks"]
    assert [pick["position"] for pick in picks] == list(range(10)) and picks[0]["reason"] == "random"
    for person in (mallory, bob):
        assert api(person).get(f"{address}{batch.pk}/").status_code in (403, 404)
    queued = speaker.post(address, body, format="json").json()["id"]
    assert speaker.post(f"{address}{queued}/cancel/").json()["state"] == "cancelled"


def test_by_command(study, job, release, capsys):
    asked = ("choose_images", "--study", "Pilot", "--num", "10", "--release", "chooser", "--seed", "5")
    call_command(*asked, "--random_share", "0.4")
    told = capsys.readouterr().out
    assert told.count("BALD") == 10 and "4 random, 5 model, 1 exploring of 30" in told
    assert study.study_images.count() == 10 and ReadingBatch.objects.get().seed == 5
    with pytest.raises(CommandError, match="There is no study 'Lost'"):
        call_command("choose_images", "--study", "Lost", "--num", "1")
    with pytest.raises(CommandError, match="There is no generation job 0"):
        call_command("choose_images", "--study", "Pilot", "--num", "1", "--jobs", "0")
    with pytest.raises(CommandError, match="20 images that nobody"):
        call_command("choose_images", "--study", "Pilot", "--num", "21", "--random_share", "1")
