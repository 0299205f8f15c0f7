"""The API as clients use it."""

import uuid

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ratings.models import Rating, Study
from ratings.services import undo


def queries(captured) -> list[str]:
    """Without those that begin and end transactions."""
    return [row["sql"] for row in captured if "SAVEPOINT" not in row["sql"] and row["sql"] != "BEGIN"]


def send(client, place, value, **given):
    body = {"value": value, "client_uuid": str(uuid.uuid4()), **given}
    return client.post(f"/api/assignments/{place.public_id}/rating/", body, "json")


def test_queue_rate_and_undo(study, places, api, bob):
    client = api(bob)
    queue = client.get(f"/api/studies/{study.public_id}/queue/", {"limit": 2}).json()
    assert [place["id"] for place in queue] == [str(place.public_id) for place in places[:2]]
    stored = send(client, places[0], 2, active_ms=900, shown_at="2026-11-22T10:00:00Z").json()
    assert stored["value"] == 2 and stored["revision"] == 1
    assert client.get(f"/api/studies/{study.public_id}/progress/").json() == {
        "done": 1,
        "total": 6,
        "left_in_pool": 0,
        "training_done": 0,
        "training_total": 0,
        "mean_active_ms": 900.0,
    }
    undone = client.post(f"/api/studies/{study.public_id}/undo/", {"client_uuid": str(uuid.uuid4())}, "json").json()
    assert undone["value"] == 2
    assert undone["assignment"] == queue[0] | {"revision": 2}
    assert client.get(f"/api/studies/{study.public_id}/queue/").json()[0] == undone["assignment"]
    nothing = client.post(f"/api/studies/{study.public_id}/undo/", {"client_uuid": str(uuid.uuid4())}, "json").json()
    assert nothing == {"assignment": None, "value": None}


def test_a_replay_is_answered_with_the_stored_row(places, api, bob):
    key = str(uuid.uuid4())
    first = send(api(bob), places[0], 3, client_uuid=key)
    again = send(api(bob), places[0], 3, client_uuid=key)
    assert first.status_code == again.status_code == 200 and first.json() == again.json()


def test_a_conflict_is_answered_with_what_stands(study, places, api, bob):
    send(api(bob), places[0], 3)
    reply = send(api(bob), places[0], 1)
    assert reply.status_code == 409
    assert reply.json()["code"] == "stale_revision" and reply.json()["rating"]["value"] == 3
    Study.objects.update(is_open=False)
    closed = send(api(bob), places[1], 1)
    assert closed.status_code == 409 and closed.json()["code"] == "study_closed"


@pytest.mark.parametrize(
    "given, field",
    [
        ({"value": 0}, "value"),
        ({"value": 4}, "value"),
        ({"value": None}, "value"),
        ({"client_uuid": "x"}, "client_uuid"),
        ({"active_ms": -1}, "active_ms"),
        ({"revision": -1}, "revision"),
    ],
)
def test_bad_submissions_are_refused_by_field(places, api, bob, given, field):
    reply = send(api(bob), places[0], **{"value": 2, **given})
    assert reply.status_code == 400 and set(reply.json()) == {field}
    assert not Rating.objects.exists()


@pytest.mark.parametrize("limit", ["0", "51", "-1", "many"])
def test_the_queue_has_limits(study, api, bob, limit):
    reply = api(bob).get(f"/api/studies/{study.public_id}/queue/", {"limit": limit})
    assert reply.status_code == 400 and "1 to 50" in reply.json()["limit"][0]


def test_saving_takes_four_queries_and_the_queue_two(study, places, api, bob):
    client = api(bob)
    with CaptureQueriesContext(connection) as captured:
        assert send(client, places[0], 2).status_code == 200
    assert len(queries(captured)) == 4 + 2, queries(captured)  # a study's first answer freezes the protocol
    undo(study=study, reader=bob, client_uuid=uuid.uuid4())
    with CaptureQueriesContext(connection) as captured:
        assert send(client, places[0], 2, revision=2).status_code == 200
    assert len(queries(captured)) == 4, queries(captured)
    with CaptureQueriesContext(connection) as captured:
        assert len(client.get(f"/api/studies/{study.public_id}/queue/").json()) == 5
    assert len(queries(captured)) == 2, queries(captured)


def test_an_admin_sets_a_study_up_and_exports_it(images, api, alice, bob):
    client = api(alice)
    ids = [str(image.public_id) for image in images]
    made = client.post("/api/studies/", {"name": "By API", "images": ids[:4], "order_seed": 3}, "json").json()
    base = f"/api/studies/{made['id']}"
    member = client.post(f"{base}/memberships/", {"reader": "bob", "expert_level": 2}, "json").json()
    assert client.post(f"{base}/images/", {"images": ids}, "json").json() == {"added": 2}
    client.patch(f"{base}/memberships/{member['id']}/", {"expert_level": 3}, "json")
    for place in api(bob).get(f"{base}/queue/").json()[:2]:
        body = {"value": 1, "client_uuid": str(uuid.uuid4())}
        api(bob).post(f"/api/assignments/{place['id']}/rating/", body, "json")
    readers = client.get(f"{base}/readers/").json()
    assert [(row["reader"], row["done"], row["total"], row["expert_level"]) for row in readers] == [("bob", 2, 6, 3)]
    ratings = client.get("/api/ratings/", {"study": made["id"], "value": 1, "reader": "bob"}).json()
    assert ratings["count"] == 2 and {row["expert_level"] for row in ratings["results"]} == {3}
    assert client.get("/api/ratings/", {"modality": "OCT"}).json()["count"] == 0
    assert client.get("/api/ratings/", {"value": "9"}).status_code == 400
    export = client.post("/api/exports/", {"study": made["id"]}, "json").json()
    assert export["row_count"] == 2
    assert client.get(export["files"]["ratings"]["url"]).getvalue().startswith(b"image_path,rating,modality,")
    client.patch(f"{base}/", {"is_open": False}, "json")
    assert not Study.objects.get(public_id=made["id"]).is_open


@pytest.mark.parametrize(
    "body, field",
    [
        ({"name": "Chest pilot", "images": []}, "images"),
        ({"name": "X", "images": [str(uuid.UUID(int=5))]}, "images"),
        ({"name": "X", "images": "all"}, "images"),
        ({"images": []}, "name"),
    ],
)
def test_bad_studies_are_refused_by_field(study, api, alice, body, field):
    reply = api(alice).post("/api/studies/", body, "json")
    assert reply.status_code == 400 and field in reply.json()
    assert Study.objects.count() == 1


def test_enrolling_twice_and_exporting_nothing_say_why(study, api, alice, bob):
    reply = api(alice).post(
        f"/api/studies/{study.public_id}/memberships/", {"reader": "bob", "expert_level": 2}, "json"
    )
    assert reply.status_code == 400 and "already" in reply.json()["reader"][0]
    reply = api(alice).post("/api/exports/", {"study": str(study.public_id)}, "json")
    assert reply.status_code == 400 and "rate images first" in str(reply.json())
