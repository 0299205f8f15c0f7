"""Submitting, changing, taking back: what stands, and what the events say about it."""

import uuid

import pytest
from django.db import IntegrityError, connection, transaction

from ratings.models import Assignment, Membership, Rating, RatingEvent
from ratings.services import StaleRevision, StudyClosed, StudyError, submit_rating, undo


def story(rating: Rating) -> list[tuple]:
    return [(event.revision, event.action, event.old_value, event.new_value) for event in rating.events.all()]


def test_a_rating_copies_level_and_protocol_of_the_moment(study, places, bob, rate):
    first = rate(places[0], 2, active_ms=1234)
    Membership.objects.filter(study=study, reader=bob).update(expert_level=1)
    study.protocol_version = 2
    study.save()
    second = rate(places[1], 3)
    first.refresh_from_db()
    assert (first.expert_level, first.protocol_version, first.active_ms) == (3, 1, 1234)
    assert (second.expert_level, second.protocol_version) == (1, 2)
    assert story(first) == [(1, "submit", None, 2)]


def test_the_same_submission_again_returns_the_stored_row(places, rate):
    key = uuid.uuid4()
    first = rate(places[0], 2, client_uuid=key)
    again = rate(places[0], 2, client_uuid=key)
    assert again.pk == first.pk and again.revision == 1
    assert RatingEvent.objects.count() == 1


def test_a_late_replay_does_not_bring_an_old_value_back(places, rate):
    key = uuid.uuid4()
    rate(places[0], 1, client_uuid=key)
    rate(places[0], 3, revision=1)
    assert rate(places[0], 1, client_uuid=key).value == 3
    assert story(Rating.objects.get()) == [(1, "submit", None, 1), (2, "change", 1, 3)]


@pytest.mark.parametrize("known", [0, 2, 5])
def test_a_stale_revision_is_refused_with_what_stands(places, rate, known):
    rate(places[0], 2)
    with pytest.raises(StaleRevision) as caught:
        rate(places[0], 3, revision=known)
    assert caught.value.rating.value == 2
    assert Rating.objects.get().value == 2


def test_a_revision_of_a_rating_that_never_was_is_refused(places, rate):
    with pytest.raises(StaleRevision) as caught:
        rate(places[0], 3, revision=1)
    assert caught.value.rating is None
    assert not Rating.objects.exists()


@pytest.mark.parametrize("value", [0, 4, -1, None, "2", 2.5])
def test_other_values_are_refused(places, rate, value):
    with pytest.raises(StudyError, match="must be 1"):
        rate(places[0], value)
    assert not Rating.objects.exists()


def test_nobody_rates_for_somebody_else(places, carol):
    with pytest.raises(PermissionError):
        submit_rating(assignment=places[0], reader=carol, value=2, client_uuid=uuid.uuid4())


def test_a_closed_study_takes_no_ratings_and_no_undo(study, places, bob, rate):
    rate(places[0], 2)
    study.is_open = False
    study.save()
    with pytest.raises(StudyClosed, match="Chest pilot"):
        rate(places[1], 2)
    with pytest.raises(StudyClosed):
        undo(study=study, reader=bob, client_uuid=uuid.uuid4())


def test_undo_goes_back_one_by_one_and_a_replay_does_not_go_further(study, places, bob, rate):
    for place, value in zip(places[:3], (1, 2, 3), strict=True):
        rate(place, value)
    key = uuid.uuid4()
    assert undo(study=study, reader=bob, client_uuid=key) == places[2]
    assert undo(study=study, reader=bob, client_uuid=key) == places[2]
    assert undo(study=study, reader=bob, client_uuid=uuid.uuid4()) == places[1]
    assert undo(study=study, reader=bob, client_uuid=uuid.uuid4()) == places[0]
    assert undo(study=study, reader=bob, client_uuid=uuid.uuid4()) is None
    assert list(Assignment.objects.visible_to(bob).open().order_by("position")) == places


def test_undo_is_by_time_of_rating_not_by_position(study, places, bob, rate):
    rate(places[4], 1)
    rate(places[0], 1)
    assert undo(study=study, reader=bob, client_uuid=uuid.uuid4()) == places[0]
    rate(places[0], 2, revision=2)
    rate(places[4], 3, revision=1)  # changed last
    assert undo(study=study, reader=bob, client_uuid=uuid.uuid4()) == places[4]


def test_what_was_taken_back_does_not_count_and_can_be_rated_again(study, places, bob, rate):
    rate(places[0], 1)
    taken_back = undo(study=study, reader=bob, client_uuid=uuid.uuid4())
    assert not Rating.objects.submitted().exists()
    rate(taken_back, 3, revision=taken_back.rating.revision)
    assert Rating.objects.submitted().get().value == 3
    assert story(Rating.objects.get()) == [(1, "submit", None, 1), (2, "undo", 1, None), (3, "submit", None, 3)]


def test_undo_leaves_other_readers_alone(study, places, bob, carol, rate):
    rate(study.assignments.filter(reader=carol).first(), 1)
    assert undo(study=study, reader=bob, client_uuid=uuid.uuid4()) is None
    assert Rating.objects.submitted().count() == 1


@pytest.mark.parametrize("column, value", [("value", 0), ("value", 4), ("expert_level", 0), ("expert_level", 4)])
def test_the_database_itself_refuses_what_is_out_of_range(places, rate, column, value):
    rating = rate(places[0], 2)
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"UPDATE ratings_rating SET {column} = %s WHERE id = %s", [value, rating.pk])


def test_the_database_itself_refuses_a_second_rating_and_a_second_event(places, rate):
    rating = rate(places[0], 2)
    event = rating.events.get()
    with pytest.raises(IntegrityError), transaction.atomic():
        Rating.objects.create(
            assignment=places[0], value=1, expert_level=1, protocol_version=1, submitted_at=rating.submitted_at
        )
    with pytest.raises(IntegrityError), transaction.atomic():
        RatingEvent.objects.create(
            rating=rating, revision=2, action="change", actor=event.actor, client_uuid=event.client_uuid
        )


def test_saving_takes_five_queries(places, bob, rate, django_assert_max_num_queries):
    rate(places[1], 2)  # a study's first answer takes one more: it freezes the protocol
    place = Assignment.objects.get(pk=places[0].pk)
    with django_assert_max_num_queries(4 + 2):  # membership, rating, two inserts; savepoint and its release
        submit_rating(assignment=place, reader=bob, value=2, client_uuid=uuid.uuid4())
