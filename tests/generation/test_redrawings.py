"""An image drawn again from its page: the same pixels, or how far they differ and why."""

import pytest
from django.urls import reverse
from PIL import Image

from generation.models import GeneratedImage, Redrawing
from generation.parameters import ParameterError, Parameters
from generation.redrawings import outcome, redraw_image
from generation.services import start_generation
from generation.tasks import run_generation_job, run_redrawing, sweep_generation_jobs
from medsyn.artifacts import file_sha256
from tests.factories import GeneratedImageFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def rung(monkeypatch, enqueued) -> list[int]:
    keys: list[int] = []
    monkeypatch.setattr(run_redrawing, "delay", keys.append)
    return keys


@pytest.fixture
def image(alice, tiny_release, rung) -> GeneratedImage:
    """The second of three images that the tiny release drew together."""
    parameters = Parameters(num_inference_steps=2, guidance_scale=2, batch_size=3)
    job = start_generation(
        prompts=["Chest X-ray: cardiomegaly"], user=alice, num_images=3, seed=5, parameters=parameters
    )
    run_generation_job(job.pk)
    return job.images.get(position=1)


def redrawn(image, user) -> Redrawing:
    row = redraw_image(image=image, user=user)
    for _ in range(2):  # delivered twice
        run_redrawing(row.pk)
    row.refresh_from_db()
    return row


def spoil(image: GeneratedImage) -> None:
    """Put another picture in the image's place, row and file alike."""
    picture = Image.open(image.path).convert("RGB")
    red, green, blue = picture.getpixel((0, 0))
    picture.putpixel((0, 0), ((red + 9) % 256 if red < 240 else red - 9, green, blue))
    picture.save(image.path)
    image.sha256 = file_sha256(image.path)
    image.save()


def test_the_same_pixels_and_the_same_hash(image, alice):
    row = redrawn(image, alice)
    assert (row.state, row.error, row.different_pixels, row.largest_difference) == ("succeeded", "", 0, 0)
    assert (row.sha256, row.device, row.file, row.is_same) == (image.sha256, "cpu", "", True)
    assert outcome(row).startswith("Same pixels, same file")


def test_another_picture_is_found_kept_and_explained(image, alice, signed_in):
    spoil(image)
    row = redrawn(image, alice)
    assert (row.different_pixels, row.largest_difference, row.is_same) == (1, 9, False)
    assert "Differs in 1 of 1024 pixels (0.1\u00a0%), by 9 of 255 grey levels" in outcome(row)
    assert "another processor" in outcome(row)
    row.image.parameters["device"] = "cuda"
    assert "made on cuda and drawn again on cpu" in outcome(row)
    picture = signed_in(alice).get(reverse("generation:image-redrawn", args=[image.public_id, row.pk]))
    assert b"".join(picture) == (row.image.path.parent.parent.parent / row.file).read_bytes()


def test_a_file_packed_otherwise_has_the_same_pixels(image, alice):
    Image.open(image.path).save(image.path, compress_level=0)
    image.sha256 = file_sha256(image.path)
    image.save()
    row = redrawn(image, alice)
    assert row.is_same and row.sha256 != image.sha256
    assert "differs in its bytes alone" in outcome(row)


def test_a_changed_or_missing_file_is_told_apart_from_a_changed_drawing(image, alice):
    image.path.write_bytes(image.path.read_bytes() + b"x")
    row = redrawn(image, alice)
    assert row.state == "failed" and "has changed since it was made" in row.error
    image.path.unlink()
    row = redrawn(image, alice)
    assert row.state == "failed" and "file is gone" in row.error
    assert outcome(row) == ""


def test_other_weights_are_said(image, alice):
    GeneratedImage.objects.update(weights_sha256="0" * 64)
    row = redrawn(image, alice)
    assert row.state == "failed" and "has other weights now" in row.error


def test_asking_twice_draws_once_and_the_sweep_rings(image, alice, rung, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        first = redraw_image(image=image, user=alice)
        assert redraw_image(image=image, user=alice) == first
    assert rung == [first.pk]
    sweep_generation_jobs()
    assert rung == [first.pk, first.pk]


def test_an_imported_image_cannot_be_drawn(alice, signed_in):
    image = GeneratedImageFactory(imported=True)
    with pytest.raises(ParameterError, match="imported"):
        redraw_image(image=image, user=alice)
    page = signed_in(alice).post(reverse("generation:image-redraw", args=[image.public_id]), follow=True)
    assert "no model and seed" in page.content.decode()


def test_the_page_says_what_came_out(image, alice, signed_in):
    admin = signed_in(alice)
    assert "Draw it again and compare" in admin.get(image.get_absolute_url()).content.decode()
    asked = admin.post(reverse("generation:image-redraw", args=[image.public_id]))
    assert asked.url == f"{image.get_absolute_url()}#again"
    row = Redrawing.objects.get()
    progress_url = reverse("generation:redrawing-progress", args=[image.public_id, row.pk])
    assert progress_url in admin.get(image.get_absolute_url()).content.decode()
    assert admin.get(progress_url).json()["state"] == "queued"
    run_redrawing(row.pk)
    page = admin.get(image.get_absolute_url()).content.decode()
    assert "Same pixels, same file" in page and page.count(image.sha256) == 3
    redrawn_url = reverse("generation:image-redrawn", args=[image.public_id, row.pk])
    assert admin.get(redrawn_url).status_code == 404, "there is no other picture"
    other = GeneratedImageFactory()
    assert admin.get(reverse("generation:redrawing-progress", args=[other.public_id, row.pk])).status_code == 404
