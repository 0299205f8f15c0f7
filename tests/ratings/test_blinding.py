"""What a reader can lay hands on tells nothing of source, score, file, seed or other readers."""

import io
import uuid

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from generation.models import GeneratedImage
from ratings.services import create_study, submit_rating
from tests.factories import GeneratedImageFactory, GenerationJobFactory, UserFactory

SECRET_MODEL, SECRET_SEED = "secret-model", 77_345_678
SECRETS = ("secret-model", "77345678", "secretfile", "abad1dea", "0.8512", "0.9234", "second_reader", "chest_xray",
           "imported", "generated", "accepted", "order_seed", "8642097531")  # fmt: skip


@pytest.fixture
def blind_study(db, bob, carol):
    """One image of each origin, every telling column filled with something to look for."""
    job = GenerationJobFactory(seed=SECRET_SEED)
    images = [
        GeneratedImageFactory(
            job=job,
            position=0,
            model_name=SECRET_MODEL,
            weights_sha256="abad1dea" * 8,
            file="images/secretfile_selector_0.8512.png",
            verdict=GeneratedImage.Verdict.ACCEPTED,
            selector_score=0.8512,
            policy_score=0.9234,
        ),
        GeneratedImageFactory(imported=True, file="images/secretfile_real.png"),
    ]
    second = UserFactory(username="second_reader")
    return create_study(
        name="Blind", images=images, readers=[(bob, 3), (carol, 1), (second, 2)], order_seed=8_642_097_531
    )


def crawl(client, study) -> list:
    """Every reply a reader gets between opening the studies and the last image."""
    replies = [client.get("/studies/"), client.get(f"/studies/{study.public_id}/rate/")]
    base = f"/api/studies/{study.public_id}"
    replies += [client.get(url) for url in ("/api/studies/", f"{base}/", f"{base}/progress/")]
    queue = client.get(f"{base}/queue/")
    replies.append(queue)
    for place in queue.json():
        replies.append(client.get(place["image"]))
        for value in (2, 3):  # the second is out of date: a conflict
            body = {"value": value, "client_uuid": str(uuid.uuid4()), "revision": place["revision"]}
            replies.append(client.post(f"/api/assignments/{place['id']}/rating/", body, "application/json"))
    replies.append(client.post(f"{base}/undo/", {"client_uuid": str(uuid.uuid4())}, "application/json"))
    assert {reply.status_code for reply in replies} == {200, 409}
    return replies


def test_no_reply_header_or_pixel_file_gives_anything_away(blind_study, signed_in, bob):
    for reply in crawl(signed_in(bob), blind_study):
        seen = (repr(reply.headers) + reply.request["PATH_INFO"]).encode() + reply.content
        for secret in SECRETS:
            assert secret.encode() not in seen, (secret, reply.request["PATH_INFO"])


def test_the_queue_holds_id_prompt_image_revision_and_whether_it_trains_only(blind_study, signed_in, bob):
    queue = signed_in(bob).get(f"/api/studies/{blind_study.public_id}/queue/").json()
    assert len(queue) == 2
    for place in queue:
        assert set(place) == {"id", "prompt", "image", "revision", "is_training"}
        assert place["image"] == f"/api/assignments/{place['id']}/image"


def test_the_image_is_encoded_anew_without_metadata_and_may_be_kept_by_this_reader(artifact_root, signed_in, bob):
    image = GeneratedImageFactory()
    pixels = np.asarray(Image.open(image.path))
    notes = PngImagePlugin.PngInfo()
    notes.add_text("prompt", "secret-model seed 77345678")
    Image.fromarray(pixels).save(image.path, pnginfo=notes, dpi=(300, 300), icc_profile=b"secret profile")
    study = create_study(name="Metadata", images=[image], readers=[(bob, 2)])
    reply = signed_in(bob).get(f"/api/assignments/{study.assignments.get().public_id}/image", HTTP_ACCEPT="image/png")
    assert reply.status_code == 200 and b"secret" not in reply.content
    with Image.open(io.BytesIO(reply.content)) as shown:
        shown.load()
        assert not shown.info and not shown.getexif()
        assert np.array_equal(np.asarray(shown), pixels)
    assert "private" in reply["Cache-Control"] and "immutable" in reply["Cache-Control"]
    assert reply["Content-Disposition"] == 'inline; filename="image.png"'
    assert reply["Content-Type"] == "image/png"


def test_grey_and_colour_files_come_in_one_form(artifact_root, signed_in, bob):
    grey, colour = GeneratedImageFactory.create_batch(2)
    Image.open(grey.path).convert("L").save(grey.path)
    study = create_study(name="Forms", images=[grey, colour], readers=[(bob, 2)])
    modes = set()
    for place in study.assignments.all():
        content = signed_in(bob).get(f"/api/assignments/{place.public_id}/image").content
        modes.add(Image.open(io.BytesIO(content)).mode)
    assert modes == {"RGB"}


@pytest.mark.parametrize("phantoms", [0, 1, 2])
def test_phantoms_are_named_for_the_study_as_a_whole(signed_in, bob, phantoms):
    images = [GeneratedImageFactory(is_phantom=number < phantoms) for number in range(2)]
    study = create_study(name="Phantoms", images=images, readers=[(bob, 2)])
    client = signed_in(bob)
    page = client.get(f"/studies/{study.public_id}/rate/").content.decode()
    assert ("procedural phantoms, not medical images" in page) == (phantoms > 0)
    queue = client.get(f"/api/studies/{study.public_id}/queue/").content.decode()
    assert "phantom" not in queue


def test_a_simulated_study_says_so(signed_in, bob, alice):
    study = create_study(name="Demo", images=[], readers=[(bob, 2)], is_simulated=True)
    for person, url in ((bob, f"/studies/{study.public_id}/rate/"), (alice, study.get_absolute_url())):
        assert 'class="badge simulated"' in signed_in(person).get(url).content.decode()


def test_no_reader_sees_how_readers_agree_or_what_an_image_was_given(blind_study, signed_in, bob, alice):
    """Neither pages nor downloads of the owner, nor a word of them in what readers may open; owners see them."""
    for place in blind_study.assignments.filter(reader__username="second_reader"):
        submit_rating(assignment=place, reader=place.reader, value=1, client_uuid=uuid.uuid4())
    base = f"/studies/{blind_study.public_id}"
    names = ("all.json", "agreement.csv", "panel.json", "rater_model.csv", "grades.json", "readers.csv", "days.csv")
    for url in (f"{base}/agreement/", f"{base}/images.csv", *(f"{base}/tables/{name}" for name in names)):
        assert signed_in(bob).get(url).status_code == 404, url
        owner = signed_in(alice).get(url)
        owner.getvalue()
        assert owner.status_code == 200, url
    for reply in crawl(signed_in(bob), blind_study):
        for telling in (b"agreement", b"kappa", b"alpha", b"images.csv", b"tables/", b"posterior"):
            assert telling not in reply.content.lower() or reply["Content-Type"] == "image/png", telling
