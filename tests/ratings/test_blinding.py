"""What a reader can lay hands on tells nothing of source, generator, score, file, seed, kind of place or others.

Every reply a reader can fetch is fetched and every byte of it looked at: pages, JSON, headers, cookies, pixels. How
long a reply takes is not: a test cannot hold it still (ratings.reader_images says what a first request costs).
"""

import json
import re
import uuid
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.test import Client, override_settings
from rest_framework.authtoken.models import Token

from generation.models import GeneratedImage
from ratings import api
from ratings.models import Assignment
from ratings.serializers import QueueSerializer
from ratings.services import create_study
from tests.access.asking import rolled_back
from tests.access.crawler import Crawl, Reply, keys_of, png_chunks, strings_of
from tests.access.headers import header_faults
from tests.factories import GeneratedImageFactory, UserFactory
from tests.ratings.blind_world import SECRETS, TAUGHT, BlindWorld, build

pytestmark = pytest.mark.django_db
# Every key that a reader's JSON may have. A new one is judged here before anybody gets it.
KEYS = {
    *("id", "name", "description", "is_open", "is_simulated", "progress", "count", "next", "previous", "results"),
    *("done", "total", "mean_active_ms", "training_done", "training_total", "left_in_pool"),
    *("prompt", "image", "revision", "is_training", "anchors", "grade"),
    *("assignment", "value", "cannot_judge", "defects", "comment", "state", "submitted_at", "feedback"),
    *("gold", "rationale"),  # of the training round only: test_only_the_training_round_tells_a_grade
    *("detail", "code", "rating"),
    *("client_uuid", "limit", "reader", "display", "non_field_errors"),  # names of fields at fault
}
# Words that would say what an image, a place or a study is.
TELLING = re.compile(
    r"\b(generated|imported|synthetic|real|gold|repeat(?:s|ed)?|calibration|selector|policy|released?|checkpoints?"
    r"|scores?|seeds?|kappa|alpha|agreement|posterior|dicom|nifti|jpe?g|main)\b",
    re.IGNORECASE,
)
# Markup in which such words are none of that: the page's landmark, the answer to a training round, names of scripts.
HARMLESS = re.compile(r'class="[^"]*"|</?main\b|id="main"|href="#main"|aria-label="Main"|/static/[\w./-]+|"gold"')
POLICIES = ("Content-Security-Policy", "Referrer-Policy", "Cross-Origin-Opener-Policy")
PLAIN_CHUNKS, DEEP_CHUNKS = ["IHDR", "IDAT", "IEND"], ["IHDR", "viEw", "IDAT", "IEND"]


@pytest.fixture(autouse=True)
def artifact_root(world):
    """The world's files serve all tests of the module."""
    return settings.ARTIFACT_ROOT


@pytest.fixture(scope="module")
def world(django_db_setup, django_db_blocker, tmp_path_factory) -> Iterator[BlindWorld]:
    """Made once; what a test changes of it is undone after the test."""
    root = tmp_path_factory.mktemp("blind")
    folders = override_settings(ARTIFACT_ROOT=root / "artifacts", VAR_DIR=root / "var")
    with django_db_blocker.unblock(), folders, rolled_back():
        yield build(UserFactory(username="blind_reader"))


@pytest.fixture(scope="module")
def reading(world) -> Crawl:
    """The mixed study read to its end, each answer given, sent again and remarked, none taken back."""
    with rolled_back():
        crawl = browser(world)
        read_through(crawl, world.mixed, undoing=False)
    return crawl


def browser(world: BlindWorld) -> Crawl:
    client = Client(raise_request_exception=False)
    client.force_login(world.reader)
    places = Assignment.objects.filter(reader=world.reader).order_by("study", "position")
    return Crawl(client, places=[str(place.public_id) for place in places])


def with_token(world: BlindWorld) -> Crawl:
    token = Token.objects.create(user=world.reader).key
    places = Assignment.objects.filter(reader=world.reader).order_by("study", "position")
    headers = {"authorization": f"Token {token}"}
    return Crawl(Client(raise_request_exception=False), headers, [str(place.public_id) for place in places])


def answer(crawl: Crawl, place: str, *, value: int = 2) -> None:
    """All that the rating page can send for one place: taken, sent again, too late, refused, remarked, taken back."""
    url = f"/api/assignments/{place}/"
    first = {"value": value, "client_uuid": str(uuid.uuid4()), "revision": 0}
    for body in (
        first,
        first,
        {**first, "client_uuid": str(uuid.uuid4())},
        {**first, "value": 7},
        {**first, "defects": ["no such defect"], "client_uuid": str(uuid.uuid4()), "revision": 1},
        {"value": None, "client_uuid": str(uuid.uuid4())},
        {},
        {**first, "reader": 999_999},
    ):
        crawl.send("post", f"{url}rating/", body)
    remarks = {"defects": ["blur"], "comment": "mine", "client_uuid": str(uuid.uuid4()), "revision": 1}
    crawl.send("post", f"{url}remarks/", remarks)
    crawl.send("post", f"{url}remarks/", {**remarks, "client_uuid": str(uuid.uuid4())})
    crawl.send("get", f"{url}image")


def read_through(crawl: Crawl, study, *, undoing: bool = True) -> None:
    """Every place of the reader in a study, as the rating page comes by them: the training round, then the rest."""
    base = f"/api/studies/{study.public_id}"
    while queue := crawl.send("get", f"{base}/queue/?limit=50").json():
        for place in queue:
            answer(crawl, place["id"])
            if undoing:
                undone = crawl.send("post", f"{base}/undo/", {"client_uuid": str(uuid.uuid4())}).json()
                again = {"value": 3, "client_uuid": str(uuid.uuid4()), "revision": undone["assignment"]["revision"]}
                crawl.send("post", f"/api/assignments/{place['id']}/rating/", again)
    crawl.send("get", f"{base}/progress/")
    crawl.send("post", f"{base}/undo/", {"client_uuid": str(uuid.uuid4()), "assignment": place["id"], "revision": 1})


# --- what a crawl has found ---


def leaks(crawl: Crawl, world: BlindWorld) -> list[str]:
    """Everything in the replies that tells what a reader must not know, in words; [] where nothing does."""
    return [f"{reply.method} {reply.url}: {what}" for reply in crawl.replies for what in _leaks_of(reply, world)]


def _leaks_of(reply: Reply, world: BlindWorld) -> Iterator[str]:
    seen = reply.head.encode() + b"\n" + reply.body
    yield from (meaning for secret, meaning in SECRETS.items() if secret.encode() in seen)
    # A page may repeat the address that was asked for, not name another.
    yield from (f"the image {key}" for key in world.image_keys if key not in reply.url and key.encode() in seen)
    if reply.kind == "application/json":
        yield from (f"the key {key!r}" for key in set(keys_of(reply.json())) - KEYS)
        texts = [text for key, text in strings_of(reply.json()) if key not in ("prompt", "rationale", "detail")]
        yield from _words(" ".join(texts))
    elif reply.kind == "text/html":
        # "There is nothing at ...": the address that was asked for.
        yield from _words(HARMLESS.sub("", reply.body.decode().replace(urlsplit(reply.url).path, "")))
    elif reply.kind == "image/png" and reply.body:
        chunks = png_chunks(reply.body)
        if chunks not in (PLAIN_CHUNKS, DEEP_CHUNKS):
            yield f"PNG chunks {chunks}"
    elif reply.body and not reply.is_static and reply.status not in (401, 403):
        yield f"a reply of the kind {reply.kind!r}"
    told = [f"{name}: {value}" for name, value in reply.headers if name not in POLICIES]
    yield from _words("\n".join(told).replace(urlsplit(reply.url).path, ""))
    if not reply.is_static:
        yield from (f"validator {name}" for name, _ in reply.headers if name in ("ETag", "Last-Modified"))


def _words(text: str) -> Iterable[str]:
    return (f"the word {word!r}" for word in sorted({match[0] for match in TELLING.finditer(text)}))


def shape_of(reply: Reply) -> tuple:
    """All of a reply but what differs from place to place anyway: ids, times, the reader's own prompt, the pixels."""
    headers = tuple(sorted((name, value) for name, value in reply.headers if name != "Content-Length"))
    if reply.kind != "application/json":
        return (
            reply.status,
            headers,
            tuple(png_chunks(reply.body)),
            reply.body[24:29],
        )  # bit depth, colour, ... of a PNG
    return reply.status, headers, json.dumps(_form(reply.json()))


def _form(value, key: str = ""):
    """A JSON value with each id, time and prompt in place of which its type and length stand."""
    if isinstance(value, dict):
        return {name: _form(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_form(inner, key) for inner in value]
    varies = key in ("id", "assignment", "image", "submitted_at", "prompt")
    return [type(value).__name__, len(str(value)) if key != "prompt" else ""] if varies else value


# --- the crawl ---


@pytest.mark.parametrize("make", [browser, with_token])
def test_nothing_that_a_reader_can_fetch_gives_anything_away(world, make):
    crawl = make(world)
    crawl.follow("/", "/api/studies/", f"/studies/{world.mixed.public_id}/rate/", "/nothing/here/")
    for study in (world.mixed, world.deep, world.almost):
        read_through(crawl, study)
    crawl.follow("/studies/", f"/studies/{world.mixed.public_id}/rate/", f"/api/studies/{world.mixed.public_id}/")
    others = Assignment.objects.exclude(reader=world.reader).values_list("public_id", flat=True)[:3]
    for place in others:
        answer(crawl, str(place))
    crawl.try_all(world.identifiers)
    assert leaks(crawl, world) == []
    assert not [fault for reply in crawl.replies if not reply.is_static for fault in faults_of(reply)]
    # The crawl has been where it should: all places and their pictures, refusals, pages that there are not.
    shown = {reply.url for reply in crawl.replies if reply.kind == "image/png" and "/assignments/" in reply.url}
    assert shown == {f"/api/assignments/{place}/image" for place in crawl.places}
    assert {200, 400, 403, 404, 405, 409} <= {reply.status for reply in crawl.replies}
    assert len(crawl.replies) > 800


def faults_of(reply: Reply) -> Iterator[str]:
    """What is wrong with its headers (tests.access.headers), cookies aside: these are tried with the matrix."""

    class Plain:
        headers, cookies = dict(reply.headers), {}

    return header_faults(reply.url, Plain)


def test_an_error_on_the_server_tells_nothing(world, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("cannot open secretfolder/secretfile_1.png of secret-model")

    crawl = browser(world)
    monkeypatch.setattr(api.services, "progress_of", broken)
    monkeypatch.setattr(api, "image_reply", broken)
    place = world.places["main"][0].public_id
    for url in ("/studies/", f"/studies/{world.mixed.public_id}/rate/", f"/api/assignments/{place}/image"):
        assert crawl.send("get", url).status == 500
    assert leaks(crawl, world) == []


def test_a_file_that_is_gone_is_not_named(world):
    crawl = browser(world)
    for places in world.places.values():
        GeneratedImage.objects.filter(pk=places[0].image_id).update(file="secretfolder/secretfile_gone.png")
        assert crawl.send("get", f"/api/assignments/{places[0].public_id}/image").status == 404
    assert leaks(crawl, world) == [] and len({shape_of(reply) for reply in crawl.replies}) == 1


# --- by form ---


def test_places_of_every_kind_get_the_same_replies(world, reading):
    """Gold, real, repeat, calibration and main places cannot be told apart by form; training places say so."""
    kinds = {str(place.public_id): kind for kind, places in world.places.items() for place in places}
    shapes: dict[str, dict[tuple, list]] = {}
    for place, kind in kinds.items():
        of_place = tuple(shape_of(reply) for reply in reading.replies if place in reply.url)
        shapes.setdefault(kind, {}).setdefault(of_place, []).append(place)
    blind = {kind: set(found) for kind, found in shapes.items() if kind != "training"}
    assert set().union(*blind.values()) == blind["main"] and len(blind["main"]) == 1
    assert set(shapes["training"]) != blind["main"]


def test_queue_items_of_every_kind_have_one_form(world, reading):
    queues = [reply.json() for reply in reading.replies if "/queue/" in reply.url]
    items = [item for queue in queues for item in queue]
    assert {json.dumps(_form(item)) for item in items if not item["is_training"]} == {
        json.dumps(_form({**items[-1], "is_training": False, "revision": 0}))
    }
    assert all(item["image"] == f"/api/assignments/{item['id']}/image" for item in items)
    assert len(items) == sum(map(len, world.places.values()))


def test_only_the_training_round_tells_a_grade(world, reading):
    taught = {str(place.public_id) for place in world.places["training"]}
    for reply in reading.replies:
        if "feedback" in set(keys_of(reply.json())):
            has_feedback = reply.json()["feedback"] is not None
            assert has_feedback == (reply.json()["assignment"] in taught)
        assert TAUGHT.encode() not in reply.body or any(place in reply.url for place in taught)


def test_the_two_showings_of_an_image_have_nothing_in_common_but_pixels(world):
    crawl = browser(world)
    for second in world.places["repeat"]:
        first = Assignment.objects.get(reader=world.reader, image=second.image, occurrence=1, study=world.mixed)
        replies = [crawl.send("get", f"/api/assignments/{place.public_id}/image") for place in (first, second)]
        assert replies[0].body == replies[1].body and replies[0].headers == replies[1].headers
        other = crawl.send("get", f"/api/assignments/{world.places['main'][0].public_id}/image")
        assert {name for name, _ in other.headers} == {name for name, _ in replies[0].headers}
        assert first.public_id != second.public_id


def test_pictures_of_a_deep_study_have_one_form_whatever_their_file(world):
    """DICOM and NIfTI, real and synthetic: the same headers, depth and chunks; all have 8 bits where one has."""
    crawl = browser(world)
    forms = {}
    for study in (world.mixed, world.deep, world.almost):
        places = study.assignments.filter(reader=world.reader)
        replies = [crawl.send("get", f"/api/assignments/{place.public_id}/image") for place in places]
        forms[study.name] = {shape_of(reply) for reply in replies}
    assert [len(found) for found in forms.values()] == [1, 1, 1]
    assert forms["Deep study"] != forms["Chest study"] == forms["Almost deep study"]


@pytest.mark.parametrize("method", ["head", "options"])
def test_other_safe_methods_tell_no_more(world, method):
    crawl = browser(world)
    place = world.places["main"][0].public_id
    addresses = ("queue/", "progress/", "anchors/", "undo/", "")
    urls = [f"/api/studies/{world.mixed.public_id}/{name}" for name in addresses]
    for url in (*urls, f"/api/assignments/{place}/image", f"/api/assignments/{place}/rating/", "/studies/"):
        crawl.send(method, url)
    assert leaks(crawl, world) == []
    assert {len(reply.body) for reply in crawl.replies} == {0} or method == "options"


# --- the study as a whole ---


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


# --- the crawl finds what is planted ---


def _header(name: str, value):
    """A leak in the headers of pictures."""

    def plant(monkeypatch):
        shown = api.image_reply

        def leaking(image, study):
            response = shown(image, study)
            response[name] = value(image)
            return response

        monkeypatch.setattr(api, "image_reply", leaking)

    return plant


def _body(change):
    """A leak in the bytes of pictures."""

    def plant(monkeypatch):
        shown = api.image_reply

        def leaking(image, study):
            response = shown(image, study)
            response.content = change(response.content, image)
            return response

        monkeypatch.setattr(api, "image_reply", leaking)

    return plant


def _with_text_chunk(content: bytes, image) -> bytes:
    text = b"tEXtkind\0" + image.source.encode()
    return content[:33] + (len(text) - 4).to_bytes(4, "big") + text + b"\0\0\0\0" + content[33:]


def _field(name: str, value):
    """A leak in the queue's items."""

    def plant(monkeypatch):
        shown = QueueSerializer.to_representation
        monkeypatch.setattr(
            QueueSerializer, "to_representation", lambda self, place: {**shown(self, place), name: value(place)}
        )

    return plant


def _cookie(monkeypatch):
    shown = api.image_reply

    def leaking(image, study):
        response = shown(image, study)
        response.set_cookie("last", image.source)
        return response

    monkeypatch.setattr(api, "image_reply", leaking)


PLANTED = {
    "a header with the model": (_header("X-Model", lambda image: image.model_name), "the model's name"),
    "a header with the source": (_header("X-Origin", lambda image: image.source), "the word 'generated'"),
    "an ETag": (_header("ETag", lambda image: f'"{image.sha256}"'), "validator ETag"),
    "a date of the file": (_header("Last-Modified", lambda image: "yesterday"), "validator Last-Modified"),
    "a file name": (_header("Content-Disposition", lambda image: image.path.name), "a file's name"),
    "a cookie": (_cookie, "the word 'generated'"),
    "a text chunk": (_body(_with_text_chunk), "PNG chunks"),
    "bytes after the end": (_body(lambda content, image: content + b"\0"), "PNG chunks"),
    "the stored file": (_body(lambda content, image: image.path.read_bytes()), "a PNG text"),
    "the kind of a place": (_field("kind", lambda place: place.kind), "the key 'kind'"),
    "the image's id": (_field("code", lambda place: str(place.image.public_id)), "the image "),
    "the score": (_field("rating", lambda place: place.image.selector_score), "the selector's score"),
    "the word for it": (_field("comment", lambda place: place.kind), "the word 'main'"),
    "a path": (_field("name", lambda place: str(place.image.path)), "a folder"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_leak_is_found(world, monkeypatch, what):
    plant, expected = PLANTED[what]
    plant(monkeypatch)
    crawl = browser(world)
    for place in world.places["training"]:
        answer(crawl, str(place.public_id))
    for places in world.places.values():
        crawl.send("get", f"/api/assignments/{places[-1].public_id}/image")
    crawl.send("get", f"/api/studies/{world.mixed.public_id}/queue/")
    found = leaks(crawl, world)
    assert any(expected in leak for leak in found), found
