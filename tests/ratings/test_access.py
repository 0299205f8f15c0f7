"""Who reaches what: one table for every address of the app, tried by everybody."""

import functools
import uuid

import pytest
from django.urls import NoReverseMatch, get_resolver, reverse

from ratings.models import Export
from ratings.services import create_study, enrol_reader, freeze_export
from tests.factories import UserFactory

PEOPLE = ("nobody", "reader", "outsider", "admin")
PAGE = (302, 404, 404, 200)  # an administrator's page: sign in first; does not exist; does not exist; there
ACTION = (302, 404, 404, 302)  # the same for a form that redirects when done
STAFF = (403, 403, 403, 200)  # an administrator's collection in the API
MADE = (403, 403, 403, 201)
OWN = (403, 200, 404, 404)  # a reader's own: others, administrators included, find nothing

# name, method, what nobody / a reader of the study / a reader of another study / an administrator gets
TABLE = [
    ("ratings:studies", "get", (302, 200, 200, 200)),
    ("ratings:study-new", "get", PAGE),
    ("ratings:study-new", "post", (302, 404, 404, 422)),
    ("ratings:study", "get", (302, 302, 404, 200)),
    ("ratings:study-readers", "post", ACTION),
    ("ratings:study-images", "get", PAGE),
    ("ratings:study-images", "post", (302, 404, 404, 422)),
    ("ratings:study-state", "post", ACTION),
    ("ratings:study-agreement", "get", PAGE),
    ("ratings:study-table", "get", PAGE),
    ("ratings:study-image-grades", "get", PAGE),
    ("ratings:rate", "get", (302, 200, 404, 404)),
    ("ratings:data", "get", PAGE),
    ("ratings:exports", "get", PAGE),
    ("ratings:exports", "post", ACTION),
    ("ratings:export-file", "get", PAGE),
    ("ratings_api:studies", "get", (403, 200, 200, 200)),
    ("ratings_api:studies", "post", MADE),
    ("ratings_api:study", "get", (403, 200, 404, 200)),
    ("ratings_api:study", "patch", STAFF),
    ("ratings_api:study-images", "post", STAFF),
    ("ratings_api:memberships", "get", STAFF),
    ("ratings_api:memberships", "post", MADE),
    ("ratings_api:membership", "patch", STAFF),
    ("ratings_api:study-readers", "get", STAFF),
    ("ratings_api:study-progress", "get", OWN),
    ("ratings_api:study-queue", "get", OWN),
    ("ratings_api:study-undo", "post", OWN),
    ("ratings_api:assignment-rating", "post", OWN),
    ("ratings_api:assignment-remarks", "post", OWN),
    ("ratings_api:assignment-image", "get", OWN),
    ("ratings_api:ratings", "get", STAFF),
    ("ratings_api:exports", "get", STAFF),
    ("ratings_api:exports", "post", MADE),
    ("ratings_api:export", "get", STAFF),
    ("ratings_api:export-file", "get", STAFF),
]
METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture
def world(study, places, rate, images, alice, bob, carol):
    """The study with one rating and one export; the outsider reads another study."""
    rate(places[0], 2)
    outsider, newcomer = UserFactory(username="outsider"), UserFactory(username="newcomer")
    other = create_study(name="Other", images=images, readers=[(outsider, 2)])
    enrol_reader(study=other, reader=carol, expert_level=1)
    export = freeze_export(study=study)
    arguments = {
        "study_id": study.public_id,
        "assignment_id": places[0].public_id,
        "pk": export.pk,
        "name": "ratings",
        "table": "agreement.csv",
    }
    bodies = {
        "ratings:study-readers": {"reader": newcomer.pk, "expert_level": 2},
        "ratings:study-state": {"open": "1"},
        "ratings:exports": {"study": str(study.public_id)},
        "ratings:study-images": {"max_images": "-1"},
        "ratings_api:studies": {"name": "New", "images": [str(images[0].public_id)]},
        "ratings_api:study": {"description": "Changed"},
        "ratings_api:study-images": {"images": [str(images[0].public_id)]},
        "ratings_api:memberships": {"reader": "newcomer", "expert_level": 1},
        "ratings_api:membership": {"expert_level": 1},
        "ratings_api:study-undo": {"client_uuid": str(uuid.uuid4())},
        "ratings_api:assignment-rating": {"value": 3, "client_uuid": str(uuid.uuid4()), "revision": 1},
        "ratings_api:assignment-remarks": {"defects": ["blur"], "client_uuid": str(uuid.uuid4()), "revision": 1},
        "ratings_api:exports": {"study": str(study.public_id)},
    }
    people = {"nobody": None, "reader": bob, "outsider": outsider, "admin": alice}
    keys = {"ratings_api:membership": study.memberships.get(reader=bob).pk}
    return people, arguments, bodies, keys


def address(name: str, arguments: dict, keys: dict) -> str:
    """The URL of ``name`` with those arguments that it takes."""
    given = {**arguments, "pk": keys.get(name, arguments["pk"])}
    (_, wanted), *_ = patterns()[tuple(name.split(":"))]
    return reverse(name, kwargs={key: given[key] for key in wanted})


@functools.cache
def patterns() -> dict[tuple[str, str], list]:
    """(namespace, name) -> [(route, parameters)] of every URL of this app, from the resolver."""
    found: dict = {}
    for namespace, (_, resolver) in get_resolver().namespace_dict.items():
        if namespace in ("ratings", "ratings_api"):
            for name in [key for key in resolver.reverse_dict if isinstance(key, str)]:
                for options, *_ in resolver.reverse_dict.getlist(name):
                    found.setdefault((namespace, name), []).extend(options)
    return found


@pytest.mark.parametrize("name, method, expected", TABLE, ids=lambda value: value if isinstance(value, str) else "")
def test_everybody_gets_what_the_table_says(world, signed_in, name, method, expected):
    people, arguments, bodies, keys = world
    url = address(name, arguments, keys)
    is_api = name.startswith("ratings_api")
    for person, status in zip(PEOPLE, expected, strict=True):
        send = getattr(signed_in(people[person]), method)
        options = {"content_type": "application/json"} if is_api and method != "get" else {}
        response = send(url, bodies.get(name, {}), **options) if method != "get" else send(url)
        response.getvalue()  # reads a download to its end, which closes its file
        assert response.status_code == status, person


def test_the_table_names_every_address_of_the_app():
    assert {f"{namespace}:{name}" for namespace, name in patterns()} == {name for name, _, _ in TABLE}


def test_no_address_takes_a_method_that_the_table_does_not_name(world, signed_in):
    people, arguments, _, keys = world
    admin = signed_in(people["admin"])
    allowed = {(name, method) for name, method, _ in TABLE}
    for name in {name for name, _ in allowed}:
        for method in METHODS:
            if (name, method) not in allowed:
                response = getattr(admin, method)(address(name, arguments, keys))
                response.getvalue()
                assert response.status_code == 405, (name, method)


def test_a_reader_of_a_closed_study_sees_no_image_of_it(world, study, places, signed_in, bob):
    study.is_open = False
    study.save()
    client = signed_in(bob)
    assert client.get(reverse("ratings_api:assignment-image", args=[places[1].public_id])).status_code == 404
    assert client.get(reverse("ratings_api:study-queue", args=[study.public_id])).json() == []
    assert client.get(reverse("ratings:rate", args=[study.public_id])).status_code == 302


def test_unknown_ids_do_not_exist(world, signed_in, alice):
    client = signed_in(alice)
    for name in ("ratings:study", "ratings:rate", "ratings_api:study", "ratings_api:study-queue"):
        assert client.get(reverse(name, args=[uuid.uuid4()])).status_code == 404
    with pytest.raises(NoReverseMatch):
        reverse("ratings:study", args=["1"])
    export = Export.objects.get()
    for name in ("path", "beside", "secret_key"):
        assert client.get(reverse("ratings_api:export-file", args=[export.pk, name])).status_code == 404
        assert client.get(reverse("ratings:export-file", args=[export.pk, name])).status_code == 302
