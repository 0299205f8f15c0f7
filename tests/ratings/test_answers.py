"""What a reader says beside the grade: defects, comment, "cannot judge", and how the image was seen."""

import csv
import uuid
from datetime import UTC, datetime

import pytest

from ratings.answer_codes import CANNOT_JUDGE_REASONS, DEFECTS
from ratings.models import Rating
from ratings.services import StaleRevision, StudyError, freeze_export, progress_of, remark, submit_rating, undo

SHOWN, PRESSED, ANSWERED = (datetime(2026, 11, 22, 10, 0, second, tzinfo=UTC) for second in (1, 3, 7))
DISPLAY = {"viewport_width": 1440, "viewport_height": 900, "device_pixel_ratio": 1.5}


def send(client, place, url="rating", **given):
    body = {"client_uuid": str(uuid.uuid4()), **given}
    return client.post(f"/api/assignments/{place.public_id}/{url}/", body, "json")


def story(rating: Rating) -> list[tuple]:
    """What happened, with what was said beside the grade as it stood then."""
    said = ("defects", "comment", "cannot_judge")
    return [
        (
            event.revision,
            event.action,
            event.new_value,
            {name: getattr(event, name) for name in said if getattr(event, name)},
        )
        for event in rating.events.all()
    ]


def table(path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_answer_keeps_everything_that_was_seen_and_said(places, api, bob):
    moments = {"shown_at": SHOWN, "first_input_at": PRESSED, "client_time": ANSWERED}
    stored = send(
        api(bob),
        places[0],
        value=1,
        defects=["finding", "noise", "noise"],
        comment="Grid over the left lung",
        active_ms=5900,
        display=DISPLAY | {"user": "Dr B"},
        reader=bob.pk,
        **{name: moment.isoformat() for name, moment in moments.items()},
    )
    assert stored.status_code == 200 and stored.json()["defects"] == ["noise", "finding"]
    rating = Rating.objects.get()
    assert (rating.shown_at, rating.first_input_at, rating.answered_at) == (SHOWN, PRESSED, ANSWERED)
    assert rating.display == DISPLAY  # what is not known is not stored
    said = {"defects": ["noise", "finding"], "comment": "Grid over the left lung"}
    assert story(rating) == [(1, "submit", 1, said)]


def test_what_cannot_be_judged_is_done_but_no_rating(study, places, api, bob):
    assert send(api(bob), places[0], value=None, cannot_judge="views", comment="needs the lateral").status_code == 200
    send(api(bob), places[1], value=3)
    rating = Rating.objects.get(assignment=places[0])
    assert (rating.value, rating.state, rating.cannot_judge) == (None, "cannot_judge", "views")
    assert progress_of([study], bob)[study.pk]["done"] == 2
    queue = api(bob).get(f"/api/studies/{study.public_id}/queue/").json()
    assert [place["id"] for place in queue] == [str(place.public_id) for place in places[2:]]
    export = freeze_export(study=study)
    assert export.row_count == 1 and [row["rating"] for row in table(export.path)] == ["3"]
    rows = [(row["rating"], row["cannot_judge"], row["comment"]) for row in table(export.path_of("tidy"))]
    assert rows == [("", "views", "needs the lateral"), ("3", "", "")]


def test_it_can_be_taken_back_and_rated(study, places, api, bob):
    send(api(bob), places[0], value=None, cannot_judge="other")
    taken = api(bob).post(f"/api/studies/{study.public_id}/undo/", {"client_uuid": str(uuid.uuid4())}, "json").json()
    assert taken["value"] is None and taken["assignment"]["id"] == str(places[0].public_id)
    assert send(api(bob), places[0], value=2, revision=2).json()["cannot_judge"] == ""
    assert story(Rating.objects.get()) == [
        (1, "submit", None, {"cannot_judge": "other"}),
        (2, "undo", None, {"cannot_judge": "other"}),
        (3, "submit", 2, {}),
    ]


@pytest.mark.parametrize(
    "given, field",
    [
        ({"value": None}, "value"),
        ({"value": None, "cannot_judge": "tired"}, "cannot_judge"),
        ({"value": 2, "cannot_judge": "other"}, "cannot_judge"),
        ({"value": 2, "defects": ["ugly"]}, "defects"),
        ({"value": 2, "defects": "noise"}, "defects"),
        ({"value": 2, "comment": "x" * 2001}, "comment"),
        ({"value": 2, "display": {"viewport_width": 0}}, "display"),
        ({"value": 2, "display": DISPLAY | {"device_pixel_ratio": "retina"}}, "display"),
        ({"value": 2, "display": DISPLAY | {"zoom": "NaN"}}, "display"),
        ({"value": 2, "first_input_at": "soon"}, "first_input_at"),
    ],
)
def test_other_answers_are_refused_by_field(places, api, bob, given, field):
    reply = send(api(bob), places[0], **given)
    assert reply.status_code == 400 and set(reply.json()) == {field}
    assert not Rating.objects.exists()


def test_the_service_refuses_them_too(places, rate):
    with pytest.raises(StudyError, match="expertise, prompt"):
        rate(places[0], None, cannot_judge="tired")
    with pytest.raises(StudyError, match="exclude each other"):
        rate(places[0], 2, cannot_judge="other")
    with pytest.raises(ValueError, match="Unknown defects: ugly"):
        rate(places[0], 2, defects=["ugly"])
    with pytest.raises(TypeError, match="mood"):
        rate(places[0], 2, mood="calm")
    assert not Rating.objects.exists()


def test_remarks_are_replaced_and_nothing_else_changes(places, rate, bob):
    first = rate(places[0], 2, defects=["blur"], active_ms=800)
    key = uuid.uuid4()
    given = {"assignment": places[0], "reader": bob, "client_uuid": key, "revision": 1}
    for _ in range(2):  # a replay
        after = remark(**given, defects=["motion", "noise"], comment="left edge")
        assert (after.revision, after.defects, after.comment) == (2, ["noise", "motion"], "left edge")
    after.refresh_from_db()
    assert (after.value, after.active_ms, after.submitted_at) == (2, 800, first.submitted_at)
    assert [event[:3] for event in story(after)] == [(1, "submit", 2), (2, "remark", 2)]


def test_remarks_need_an_answer_that_stands_as_known(study, places, rate, bob, carol):
    key = {"client_uuid": uuid.uuid4(), "reader": bob}
    with pytest.raises(StaleRevision):
        remark(assignment=places[0], revision=1, **key)
    rate(places[0], 2)
    with pytest.raises(StaleRevision):
        remark(assignment=places[0], revision=2, **key)
    with pytest.raises(PermissionError):
        remark(assignment=places[0], revision=1, client_uuid=uuid.uuid4(), reader=carol)
    undo(study=study, reader=bob, client_uuid=uuid.uuid4())
    with pytest.raises(StaleRevision):
        remark(assignment=places[0], revision=2, **key)


def test_undo_takes_back_the_named_answer_or_says_how_it_stands(study, places, rate, api, bob):
    for place in places[:2]:
        rate(place, 2)
    url = f"/api/studies/{study.public_id}/undo/"
    named = {"assignment": str(places[0].public_id), "revision": 1, "client_uuid": str(uuid.uuid4())}
    first, again = (api(bob).post(url, named, "json").json() for _ in range(2))
    assert first == again and first["assignment"]["id"] == str(places[0].public_id)
    assert Rating.objects.submitted().get().assignment == places[1]  # the later one stands
    stale = api(bob).post(url, named | {"client_uuid": str(uuid.uuid4())}, "json")
    assert stale.status_code == 409 and stale.json()["rating"]["state"] == "withdrawn"


def test_a_request_of_somebody_else_is_kept_off(study, places, api, bob, carol):
    """A page that bob left open must not rate for carol, who signed in beside it, nor lose what bob said."""
    body = {"client_uuid": str(uuid.uuid4()), "reader": bob.pk}
    urls = [f"/api/assignments/{places[0].public_id}/rating/", f"/api/studies/{study.public_id}/undo/"]
    for url, given in zip(urls, ({"value": 2}, {}), strict=True):
        assert api(carol).post(url, {**body, **given}, "json").status_code == 403
    for reader, expected in ((bob.pk, 403), (carol.pk, 200), ("me", 403)):
        reply = api(carol).get(f"/api/studies/{study.public_id}/queue/", {"reader": reader})
        assert reply.status_code == expected
    assert not Rating.objects.exists()


def test_a_replay_is_never_a_conflict(places, bob):
    key = {"assignment": places[0], "reader": bob, "client_uuid": uuid.uuid4()}
    submit_rating(**key, cannot_judge="prompt")
    assert submit_rating(**key, cannot_judge="prompt").revision == 1


def test_one_key_for_two_requests_is_refused_and_nothing_changes(study, places, rate, api, bob):
    key = uuid.uuid4()
    rate(places[0], 2, client_uuid=key)
    named = {"assignment": str(places[0].public_id), "revision": 1, "client_uuid": str(key)}
    reply = api(bob).post(f"/api/studies/{study.public_id}/undo/", named, "json")
    assert reply.status_code == 400 and "Make a new one for every request" in reply.json()["detail"][0]
    assert story(Rating.objects.submitted().get()) == [(1, "submit", 2, {})]


def test_a_key_that_did_something_else_before_is_no_replay(study, places, rate, bob):
    """Else what was said would be lost behind a reply that sounds like success."""
    keys = [uuid.uuid4() for _ in range(2)]
    rate(places[0], 2, client_uuid=keys[0])
    place = {"assignment": places[0], "reader": bob}
    with pytest.raises(StudyError, match="another request"):
        remark(**place, client_uuid=keys[0], revision=1, comment="Grid over the left lung")
    undo(study=study, reader=bob, client_uuid=keys[1])
    with pytest.raises(StudyError, match="another request"):
        submit_rating(**place, client_uuid=keys[1], revision=2, value=3)
    assert Rating.objects.get().state == "withdrawn"


def test_the_page_offers_every_defect_and_reason(study, signed_in, bob):
    page = signed_in(bob).get(f"/studies/{study.public_id}/rate/").content.decode()
    for code, label in [*DEFECTS.items(), *CANNOT_JUDGE_REASONS.items()]:
        assert f'="{code}"' in page and label in page
