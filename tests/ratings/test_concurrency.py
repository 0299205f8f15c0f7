"""Two clients at once. Runs on the database at hand, and again on a real PostgreSQL."""

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
from django.db import connection, connections

from ratings.models import Assignment, Rating, RatingEvent
from ratings.services import (
    PlaceGivenAway,
    StaleRevision,
    add_images,
    create_study,
    draw_places,
    enrol_reader,
    release_places,
    revise_protocol,
    submit_rating,
    undo,
)
from tests.factories import GeneratedImageFactory, UserFactory

ROUNDS = 5


@pytest.fixture
def at_once() -> Callable[..., list]:
    """``at_once(f, g)``: call both at the same moment, each on a connection of its own; results or exceptions."""

    def run(*calls: Callable) -> list:
        start, results = threading.Barrier(len(calls)), [None] * len(calls)

        def work(index: int) -> None:
            start.wait()
            try:
                results[index] = calls[index]()
            except Exception as error:  # noqa: BLE001  it is the result
                results[index] = error
            finally:
                connections.close_all()

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return run


@pytest.mark.django_db(transaction=True)
class TestAtOnce:
    def test_two_submissions_of_one_place_leave_one_rating(self, places, bob, at_once):
        for place in places[:ROUNDS]:
            results = at_once(
                *(
                    lambda value=value, place=place: submit_rating(
                        assignment=place, reader=bob, value=value, client_uuid=uuid.uuid4()
                    )
                    for value in (1, 3)
                )
            )
            stored = Rating.objects.get(assignment=place)
            won = [result for result in results if isinstance(result, Rating)]
            lost = [result for result in results if isinstance(result, StaleRevision)]
            assert (len(won), len(lost)) == (1, 1), results
            assert stored.value == won[0].value == lost[0].rating.value
            assert stored.revision == stored.events.count() == 1

    def test_one_submission_sent_twice_is_stored_once(self, places, bob, at_once):
        for place in places[:ROUNDS]:
            key = uuid.uuid4()
            results = at_once(
                *(
                    lambda place=place, key=key: submit_rating(assignment=place, reader=bob, value=2, client_uuid=key)
                    for _ in range(2)
                )
            )
            assert [result.pk for result in results] == [Rating.objects.get(assignment=place).pk] * 2
        assert RatingEvent.objects.count() == ROUNDS

    def test_two_undos_take_back_two_ratings(self, study, places, bob, rate, at_once):
        for place in places[:4]:
            rate(place, 2)
        for left in (2, 0):
            taken = at_once(*(lambda: undo(study=study, reader=bob, client_uuid=uuid.uuid4()) for _ in range(2)))
            assert len({place.pk for place in taken}) == 2
            assert Rating.objects.submitted().count() == left

    def test_a_reader_who_joins_while_images_arrive_gets_them_all(self, study, at_once):
        more, dora = GeneratedImageFactory.create_batch(3), UserFactory()
        results = at_once(
            lambda: add_images(study=study, images=more),
            lambda: enrol_reader(study=study, reader=dora, expert_level=2),
        )
        assert not [result for result in results if isinstance(result, Exception)], results
        places = Assignment.objects.filter(study=study, reader=dora).order_by("position")
        assert [place.position for place in places] == list(range(9))


THREADS = 20


def answer(place, value: int = 2) -> Rating:
    return submit_rating(assignment=place, reader=place.reader, value=value, client_uuid=uuid.uuid4())


def read_all(study, reader) -> int:
    """What a reader's page does until the pool has nothing left: ask, rate what it got, ask again."""
    answered = 0
    while True:
        draw_places(study=study, reader=reader)
        places = list(study.assignments.filter(reader=reader).open().select_related("reader")[:15])
        if not places:
            return answered
        for place in places:
            answer(place)
        answered += len(places)


@pytest.mark.django_db(transaction=True)
class TestPoolAtOnce:
    """Twenty readers of one open pool."""

    @pytest.fixture
    def pool(self, many_images):
        readers = UserFactory.create_batch(THREADS)
        study = create_study(
            name="Pool",
            images=many_images(45),
            readers=[(reader, 2) for reader in readers],
            order_seed=3,
            protocol={"overlap_target": 3, "repeat_share": 0.1, "repeat_distance": 10},
        )
        return study, readers

    def assert_exact(self, study) -> None:
        """The counters are those of the places, and no image has more readers than it may."""
        held = Counter(study.assignments.filter(released_at=None, occurrence=1).values_list("image", flat=True))
        for entry in study.study_images.all():
            assert entry.num_readers == held[entry.image_id] <= entry.max_readers

    def test_everybody_draws_at_once_and_the_overlap_is_exact(self, pool, at_once):
        study, readers = pool
        drawn = at_once(*(lambda reader=reader: draw_places(study=study, reader=reader) for reader in readers))
        assert not [each for each in drawn if isinstance(each, Exception)], drawn
        # Twenty readers who want twenty each take all there is.
        assert study.assignments.filter(occurrence=1).count() == 45 * 3 and study.assignments.count() == sum(drawn)
        assert {entry.num_readers for entry in study.study_images.all()} == {3}
        self.assert_exact(study)

    def test_one_reader_in_many_windows_draws_once(self, pool, at_once):
        study, (ann, *_) = pool
        drawn = at_once(*(lambda: draw_places(study=study, reader=ann) for _ in range(THREADS)))
        assert sorted(drawn) == [0] * (THREADS - 1) + [22], drawn  # twenty images, two of them twice

    def test_drawing_and_rating_side_by_side_every_image_reaches_its_target(self, pool, at_once):
        study, readers = pool
        answered = at_once(*(lambda reader=reader: read_all(study, reader) for reader in readers[:4]))
        assert not [each for each in answered if isinstance(each, Exception)], answered
        first = (
            Rating.objects.submitted().filter(assignment__occurrence=1).values_list("assignment__image", flat=True)
        )
        assert set(Counter(first).values()) == {3} and len(first) == 45 * 3
        self.assert_exact(study)

    def test_places_given_back_while_they_are_answered_and_drawn_stay_exact(self, pool, at_once):
        study, readers = pool
        revise_protocol(study=study, created_by=None, overlap_target=1)
        ann, *others = readers
        for _ in range(ROUNDS):
            draw_places(study=study, reader=ann)
            places = list(study.assignments.filter(reader=ann).open().select_related("reader")[:4])
            results = at_once(
                lambda: release_places(study=study, reader=ann),
                *(lambda place=place: answer(place) for place in places),
                *(lambda reader=reader: draw_places(study=study, reader=reader) for reader in others[:3]),
            )
            strange = [each for each in results if not isinstance(each, int | Rating | PlaceGivenAway)]
            assert not strange, strange
            self.assert_exact(study)
            for reader in others[:3]:
                release_places(study=study, reader=reader)
        assert Rating.objects.exists()

    def test_who_rates_first_and_who_revises_take_turns(self, study, places, bob, at_once):
        for number, place in enumerate(places[:ROUNDS]):
            rated, revised = at_once(
                lambda place=place: answer(place),
                lambda number=number: revise_protocol(
                    study=study, created_by=None, reason=f"round {number}", scale_texts={"1": f"text {number}"}
                ),
            )
            assert isinstance(rated, Rating) and not isinstance(revised, Exception), (rated, revised)
            # Either the text changed before the rating, under whose version it stands, or a new version has it.
            text = study.protocols.get(version=rated.protocol_version).scale_texts["1"]
            is_new = revised.version > rated.protocol_version
            assert (text == f"text {number}") != is_new
            study.refresh_from_db()
            assert (study.frozen_at is None) == is_new


HAMMERS, HAMMER_SECONDS = 8, 2.0


def hammer(study, reader, seed: int) -> set[uuid.UUID]:
    """Rate and take back at random until the time is up, with whatever revision was last heard of, and send every
    third request twice; returns the keys of those that were confirmed."""
    chance, confirmed, known = random.Random(seed), set(), {}
    places = list(study.assignments.filter(reader=reader))
    until = time.monotonic() + HAMMER_SECONDS
    while time.monotonic() < until:
        key, place = uuid.UUID(int=chance.getrandbits(128), version=4), chance.choice(places)
        given = {"value": chance.randint(1, 3), "revision": known.get(place.pk, 0), "client_uuid": key}
        is_undo, times = chance.random() < 0.3, chance.choice((1, 1, 2))
        for _ in range(times):
            if is_undo:
                confirmed |= {key} if undo(study=study, reader=reader, client_uuid=key) else set()
                continue
            try:
                known[place.pk] = submit_rating(assignment=place.public_id, reader=reader, **given).revision
                confirmed.add(key)
            except StaleRevision as error:
                known[place.pk] = error.rating.revision if error.rating else 0
                break
    return confirmed


@pytest.mark.django_db(transaction=True)
class TestHammeredAtOnce:
    """Two readers, each in four windows that know nothing of each other."""

    def test_every_confirmed_request_is_one_event_and_every_rating_the_sum_of_its_events(
        self, study, bob, carol, at_once
    ):
        people = (bob, carol) * (HAMMERS // 2)
        calls = [lambda reader=reader, n=n: hammer(study, reader, n) for n, reader in enumerate(people)]
        results = at_once(*calls)
        assert not [each for each in results if isinstance(each, Exception)], results
        confirmed = set().union(*results)
        events = list(RatingEvent.objects.order_by("rating", "revision"))
        assert {event.client_uuid for event in events} == confirmed and len(events) > HAMMERS
        assert Rating.objects.count() == Rating.objects.values("assignment").distinct().count()
        for rating in Rating.objects.all():
            own = [event for event in events if event.rating_id == rating.pk]
            assert [event.revision for event in own] == list(range(1, rating.revision + 1))
            assert (own[-1].state, own[-1].value) == (rating.state, rating.value)
            # Whatever stood is what the next event says had stood.
            for before, after in pairwise(own):
                stood = before.value if before.state == Rating.State.SUBMITTED else None
                assert after.old_value == stood

    def test_a_key_that_was_used_for_one_request_does_nothing_for_another(self, study, places, bob, rate):
        key = uuid.uuid4()
        rate(places[0], 2, client_uuid=key)
        assert undo(study=study, reader=bob, client_uuid=uuid.uuid4()).pk == places[0].pk
        again = rate(places[0], 2, client_uuid=key)
        assert again.revision == 2 and again.state == Rating.State.WITHDRAWN


@pytest.mark.postgres
@pytest.mark.slow
def test_the_same_holds_on_postgresql(run_on_postgres):
    if connection.vendor == "postgresql":
        pytest.skip("this is the run on PostgreSQL")
    run_on_postgres("tests/ratings/test_concurrency.py", "-k", "AtOnce")
