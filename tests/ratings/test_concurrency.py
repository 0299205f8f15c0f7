"""Two clients at once. Runs on the database at hand, and again on a real PostgreSQL."""

import threading
import uuid
from collections.abc import Callable

import pytest
from django.db import connection, connections

from ratings.models import Assignment, Rating, RatingEvent
from ratings.services import StaleRevision, add_images, enrol_reader, submit_rating, undo
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


@pytest.mark.postgres
@pytest.mark.slow
def test_the_same_holds_on_postgresql(run_on_postgres):
    if connection.vendor == "postgresql":
        pytest.skip("this is the run on PostgreSQL")
    run_on_postgres("tests/ratings/test_concurrency.py", "-k", "TestAtOnce")
