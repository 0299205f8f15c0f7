"""A run from the form to an image: its worker killed in mid-training, resumed, released, and drawn with.

The browser is real, the worker (Celery, its beat and the sweep) and the training process are, and so are the signals.
Only networks and images are small. Web server and worker share the test's database, as they would in a house.
"""

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection
from playwright.sync_api import Page, expect

from generation.models import GeneratedImage
from ratings.models import Assignment
from ratings.services import create_study, submit_rating
from tests.factories import GeneratedImageFactory, PromptFactory
from tests.houses import environment_of, is_free, start_worker, wait_until
from tests.training.runs import Purpose, State, make_run
from training.models import TrainingRun
from training.run_directory import RunDirectory

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]
PROMPTS = ("Chest X-ray: clear lungs", "Chest X-ray: left effusion", "OCT: drusen", "OCT: fluid")
NUM_IMAGES = 24
PATIENCE_SECONDS = 300
EPOCHS = 30
SMALL = {"embed_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "patch_size": 8, "pretrained": ""}
TYPED = {
    "training.max_epochs": EPOCHS,
    "training.batch_size": 8,
    "training.checkpoints.save_frequency": 2,
    "training.early_stopping_patience": 0,
    "data.num_workers": 0,
    "synthetic_system.image_size": "32, 32",
    "selector.architecture.head_dim": 8,
    "selector.architecture.ensemble_heads": 2,
    "policy_model.architecture.fusion_dim": 16,
    **{
        f"{network}.architecture.{name}": value
        for network in ("selector", "policy_model")
        for name, value in SMALL.items()
    },
}


@pytest.fixture
def study(alice, bob, carol):
    """Small images that two readers have rated."""
    prompts = [PromptFactory(text=text) for text in PROMPTS]
    images = [
        GeneratedImageFactory(imported=True, width=32, height=32, prompt=prompts[number % len(prompts)])
        for number in range(NUM_IMAGES)
    ]
    study = create_study(name="Rated", images=images, readers=[(bob, 2), (carol, 3)], order_seed=3)
    grades = {image.pk: 1 + number // len(PROMPTS) % 3 for number, image in enumerate(images)}
    for place in Assignment.objects.filter(study=study).select_related("reader").order_by("reader", "position"):
        value = grades[place.image_id]
        submit_rating(assignment=place, reader=place.reader, value=value, client_uuid=uuid.uuid4())
    return study


@pytest.fixture
def generator() -> TrainingRun:
    """A finished fine-tuning with a random pipeline of 32 pixels: what the form offers as a generator."""
    from generation.diffusion.presets import TEST, build_pipeline

    run = make_run(Purpose.FINETUNE, name="Small generator", state=State.SUCCEEDED, config={})
    build_pipeline(TEST, captions_for_vocabulary=PROMPTS, seed=0).save_pretrained(run.path / "pipeline")
    return run


@pytest.fixture
def worker(tmp_path) -> Iterator[Callable[[], subprocess.Popen]]:
    """``worker()``: one for both queues, with short leases. All are ended with the test."""
    if connection.vendor != "sqlite":
        pytest.skip("the worker is given the test's database by its file")
    environment = environment_of(
        tmp_path,  # its artifacts are the test's
        MEDSYN_DATABASE_URL=f"sqlite:///{settings.DATABASES['default']['NAME']}",
        MEDSYN_JOB_LEASE_SECONDS="3",
        MEDSYN_JOB_SWEEP_SECONDS="1",
        MEDSYN_TORCH_THREADS="1",
        DEVICE="cpu",
    )
    workers = []

    def start() -> subprocess.Popen:
        workers.append(start_worker(environment, "training,generation", "--beat"))
        return workers[-1]

    yield start
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):  # the one that the test killed
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def descendants(pid: int) -> list[int]:
    """Processes below this one, by /proc."""
    try:
        children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return children + [each for child in children for each in descendants(child)]


def kill(worker: subprocess.Popen) -> None:
    """Worker, launcher, trainer and beat at once: nobody has the time to say or save anything."""
    for pid in [worker.pid, *descendants(worker.pid)]:
        os.kill(pid, signal.SIGKILL)
    worker.wait()


def start_run(page: Page, study, generator: TrainingRun) -> TrainingRun:
    """Fill in the form and send it."""
    page.goto("/training/new/rlhf/")
    page.locator('[name="study"]').select_option(label=study.name)
    page.locator('[name="generator"]').select_option(label=f"{generator} (run {generator.pk})")
    page.get_by_text("All other settings").click()
    for key, value in TYPED.items():
        page.locator(f'[name="{key}"]').fill(str(value))
    expect(page.locator("[data-cost-figures]")).to_contain_text("of disk")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_text("Place 1 of 1 in the queue")).to_be_visible()
    return TrainingRun.objects.get(purpose=Purpose.RLHF)


def release(page: Page) -> None:
    page.get_by_label("Quality threshold").fill("0")
    page.get_by_label("Name").fill("After the fall")
    page.get_by_label("Serve it from now on").check()
    page.get_by_role("button", name="Publish release").click()
    expect(page.get_by_text("is served from now on")).to_be_visible(timeout=30_000)


def generate(page: Page) -> None:
    page.goto("/generate/")
    page.get_by_label("Prompt", exact=True).fill(PROMPTS[2])
    page.get_by_label("Keep only what selector and policy accept").check()
    page.locator('[name="quality_threshold"]').fill("0")
    page.get_by_label("Images of each prompt").fill("1")
    page.get_by_text("Sampling and model").click()
    page.locator('[name="num_inference_steps"]').fill("2")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("[data-progress]")).to_have_count(0, timeout=1000 * PATIENCE_SECONDS)  # done, and loaded anew
    page.locator("#gallery a.image-card.is-accepted").first.click()
    page.wait_for_url("**/images/*/")


def test_a_run_survives_its_worker_and_ends_in_an_image(sign_in, alice, study, generator, worker):
    page = sign_in(alice)
    run = start_run(page, study, generator)
    directory = RunDirectory(run.path)

    first = worker()
    wait_until(lambda: directory.latest() is not None, "a first checkpoint")
    kill(first)
    wait_until(lambda: is_free(directory), "the trainer's end")
    interrupted_at = directory.latest().name
    run.refresh_from_db()
    assert (run.state, run.attempt) == (State.RUNNING, 1)  # nobody could write anything else
    assert interrupted_at != f"epoch_{EPOCHS}"

    worker()
    page.reload()
    expect(page.locator("#report")).to_be_visible(timeout=1000 * PATIENCE_SECONDS)  # the page follows by itself
    expect(page.locator("dl.figures").first).to_contain_text("Taken up again")
    run.refresh_from_db()
    assert (run.state, run.attempt, run.error) == (State.SUCCEEDED, 2, "")
    assert f"Resumed from {directory.path / interrupted_at}" in (run.path / "log.txt").read_text()

    release(page)
    generate(page)
    run.refresh_from_db()
    expect(page.locator(".provenance").first).to_contain_text(str(run.release))
    image = GeneratedImage.objects.get(release=run.release, verdict=GeneratedImage.Verdict.ACCEPTED)
    assert page.url.endswith(image.get_absolute_url()) and run.release.name == "After the fall"
