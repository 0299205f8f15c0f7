"""Void ratings: they count nowhere, nothing is deleted, and they can count again."""

import uuid

import pytest
from django.db import IntegrityError, transaction

from ratings.models import Rating
from ratings.services import (
    StaleRevision,
    StudyError,
    VoidRating,
    progress_of,
    remark,
    restore_rating,
    submit_rating,
    undo,
    void_rating,
)
from tests.factories import StudyOwnerFactory


@pytest.fixture
def rating(places, rate) -> Rating:
    return rate(places[0], 2, defects=["blur"])


def test_a_void_rating_counts_nowhere_and_its_place_is_gone(study, rating, places, alice, bob, rate):
    rate(places[1], 3)
    void_rating(rating=rating, actor=alice, reason=" wrong monitor ")
    rating.refresh_from_db()
    assert (rating.state, rating.value, rating.defects, rating.revision) == ("void", 2, ["blur"], 2)
    assert rating not in Rating.objects.submitted() and rating not in Rating.objects.answered()
    assert rating not in Rating.objects.exportable(study=study, include_unjudged=True)
    progress = progress_of([study], bob)[study.pk]
    assert (progress["done"], progress["total"]) == (1, 5)
    assert places[0] not in study.assignments.open() and places[0] not in study.assignments.done()


def test_the_event_says_who_and_why_and_what_stood(rating, alice):
    void_rating(rating=rating, actor=alice, reason=" wrong monitor ")
    restore_rating(rating=rating, actor=alice, reason="it was the right one")
    given, void, restored = rating.events.order_by("revision")
    assert (void.action, void.actor, void.reason, void.state) == ("void", alice, "wrong monitor", "void")
    assert (void.old_value, void.new_value, void.value) == (2, None, 2)
    assert (restored.action, restored.reason, restored.state) == ("restore", "it was the right one", "submitted")
    assert (restored.old_value, restored.new_value) == (None, 2)
    assert (given.revision, void.revision, restored.revision) == (1, 2, 3)


@pytest.mark.parametrize("given", [{"value": 1}, {"value": None, "cannot_judge": "expertise"}])
def test_restored_it_stands_as_it_stood(places, bob, alice, given):
    rating = submit_rating(assignment=places[0], reader=bob, client_uuid=uuid.uuid4(), **given)
    before = rating.state
    for _ in range(2):
        void_rating(rating=rating, actor=alice, reason="a")
        rating = restore_rating(rating=rating, actor=alice, reason="b")
    assert rating.state == before and rating.revision == rating.events.count() == 5
    changed = submit_rating(assignment=places[0], reader=bob, value=3, client_uuid=uuid.uuid4(), revision=5)
    assert (changed.value, changed.state) == (3, "submitted")


def test_its_reader_can_neither_change_nor_remark_nor_take_it_back(study, rating, places, bob, alice):
    void_rating(rating=rating, actor=alice, reason="why")
    own = {"reader": bob, "client_uuid": uuid.uuid4()}
    for revision in (1, 2):
        with pytest.raises(VoidRating, match="declared void"):
            submit_rating(assignment=places[0], value=3, revision=revision, **own)
        with pytest.raises(VoidRating):
            remark(assignment=places[0], revision=revision, **own)
        with pytest.raises(VoidRating):
            undo(study=study, assignment=places[0].public_id, revision=revision, **own)
    assert undo(study=study, **own) is None  # nothing else stands


def test_the_answer_to_a_void_rating_is_a_conflict_with_a_sentence(rating, places, api, bob, alice):
    key = str(rating.events.get().client_uuid)
    void_rating(rating=rating, actor=alice, reason="secret reason")
    url = f"/api/assignments/{places[0].public_id}/rating/"
    reply = api(bob).post(url, {"value": 3, "revision": 1, "client_uuid": str(uuid.uuid4())}, "json")
    assert reply.status_code == 409 and reply.json()["code"] == "void"
    assert "declared void" in reply.json()["detail"] and reply.json()["rating"]["state"] == "void"
    assert b"secret reason" not in reply.content
    again = api(bob).post(url, {"value": 2, "client_uuid": key}, "json")  # a replay is a replay
    assert again.status_code == 200 and again.json()["state"] == "void"


def test_what_cannot_be_voided_or_restored_is_refused(study, rating, places, bob, alice):
    with pytest.raises(StudyError, match="Say why"):
        void_rating(rating=rating, actor=alice, reason="  ")
    with pytest.raises(StudyError, match="not void"):
        restore_rating(rating=rating, actor=alice, reason="x")
    void_rating(rating=rating, actor=alice, reason="x")
    with pytest.raises(StudyError, match="is void"):
        void_rating(rating=rating, actor=alice, reason="x")
    restore_rating(rating=rating, actor=alice, reason="x")
    undo(study=study, reader=bob, client_uuid=uuid.uuid4())
    with pytest.raises(StudyError, match="taken back"):
        void_rating(rating=rating, actor=alice, reason="x")
    with pytest.raises(IntegrityError), transaction.atomic():
        rating.events.filter(action="void").update(reason="")


def test_a_stale_revision_stays_what_it_was(rating, places, rate):
    with pytest.raises(StaleRevision) as caught:
        rate(places[0], 3)
    assert not isinstance(caught.value, VoidRating) and "elsewhere" in str(caught.value)


def test_only_whoever_runs_the_study_declares_void(study, rating, api, alice, bob):
    owner, stranger = StudyOwnerFactory(), StudyOwnerFactory()
    study.created_by = owner
    study.save()
    url = f"/api/ratings/{rating.pk}/"
    reason = {"reason": "wrong monitor"}
    assert api(bob).post(f"{url}void/", reason, "json").status_code == 403
    assert api(stranger).post(f"{url}void/", reason, "json").status_code == 404
    assert api(owner).post(f"{url}void/", {"reason": ""}, "json").status_code == 400
    assert api(owner).post(f"{url}void/", reason, "json").json()["state"] == "void"
    assert api(alice).post(f"{url}void/", reason, "json").status_code == 400
    assert api(stranger).post(f"{url}restore/", reason, "json").status_code == 404
    assert api(alice).post(f"{url}restore/", reason, "json").json()["state"] == "submitted"
