"""What demonstration and closed loop share: accounts, phantoms as images, jobs drawn here and now."""

import numpy as np
import pytest

from generation import engine
from generation.models import GenerationJob
from medsyn.jobs import JobError
from tests.factories import GenerationJobFactory
from training.simulated_rows import JobUnfinished, draw_now, expert_account, import_phantoms

pytestmark = pytest.mark.django_db


def test_an_experts_account_is_made_once_and_lets_nobody_in(client):
    person = expert_account(3)
    assert expert_account(3) == person and expert_account(4) != person
    assert not person.has_usable_password() and not client.login(username="simulated-3", password="")


def test_phantoms_become_images_in_their_order_each_once():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    prompts = ["OCT: drusen", "Fundus: drusen", "OCT: drusen"]
    images = import_phantoms(zip(pixels, prompts, strict=True), batch="Phantoms")
    assert [image.prompt.text for image in images] == prompts
    assert all(image.is_phantom and not image.is_real and image.batch == "Phantoms" for image in images)
    again = import_phantoms([(pixels[1], prompts[1])], batch="Others")
    assert again == [images[1]]


def test_a_job_that_ends_otherwise_than_well_says_so_and_is_taken_up_again(monkeypatch):
    job = GenerationJobFactory()

    def fail(_):
        raise JobError("There is no such model.")

    monkeypatch.setattr(engine, "run", fail)
    with pytest.raises(JobUnfinished, match=r"is failed\. There is no such model\. Run the command again"):
        draw_now(job)
    monkeypatch.setattr(engine, "run", lambda _: None)
    draw_now(job)
    assert job.state == GenerationJob.State.SUCCEEDED
