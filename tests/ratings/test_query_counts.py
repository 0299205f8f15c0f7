"""How many queries a request takes, sign-in included, and that more readers and images take no more."""

import uuid
from collections.abc import Callable

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from ratings.services import add_images, enrol_reader
from tests.factories import GeneratedImageFactory, UserFactory

MOST_FOR_A_SAVE = 6
_NO_QUERIES = ("BEGIN", "SAVEPOINT", "RELEASE SAVEPOINT")  # what begins and ends transactions


@pytest.fixture
def cost() -> Callable[..., tuple[int, object]]:
    """``cost(call)``: how many queries the call took, and what it returned."""

    def count(call: Callable) -> tuple[int, object]:
        with CaptureQueriesContext(connection) as captured:
            returned = call()
        return sum(not row["sql"].startswith(_NO_QUERIES) for row in captured), returned

    return count


@pytest.fixture
def browser(signed_in, bob):
    """bob's, with a session of the database."""
    return signed_in(bob)


@pytest.fixture
def begun(places, rate):
    """A study in which something is rated: its protocol is frozen, and this process knows its defects."""
    rate(places[-1], 2)
    rate(places[-2], 1, defects=["noise"])


def answer(browser, place, value=2, **given):
    body = {"value": value, "revision": 0, "client_uuid": str(uuid.uuid4()), **given}
    return browser.post(f"/api/assignments/{place.public_id}/rating/", body, "application/json")


def test_the_very_first_answer_of_a_study(browser, places, cost):
    number, reply = cost(lambda: answer(browser, places[0]))
    assert reply.status_code == 200
    assert number <= MOST_FOR_A_SAVE + 2  # it locks and freezes the protocol: once in a version's life


@pytest.mark.usefixtures("begun")
class TestSaves:
    def test_a_first_answer_and_a_replay_of_it(self, browser, places, cost):
        given = {"client_uuid": str(uuid.uuid4()), "defects": ["noise"], "comment": "So it is."}
        number, reply = cost(lambda: answer(browser, places[0], 1, **given))
        assert reply.status_code == 200 and number <= MOST_FOR_A_SAVE
        number, again = cost(lambda: answer(browser, places[0], 1, **given))
        assert again.json() == reply.json() and number < MOST_FOR_A_SAVE

    def test_a_change_and_a_replay_of_it(self, browser, places, cost):
        answer(browser, places[0], 3)
        given = {"client_uuid": str(uuid.uuid4()), "revision": 1}
        number, reply = cost(lambda: answer(browser, places[0], 1, **given))
        assert reply.json()["revision"] == 2 and number <= MOST_FOR_A_SAVE
        number, again = cost(lambda: answer(browser, places[0], 1, **given))
        assert again.json() == reply.json() and number < MOST_FOR_A_SAVE

    def test_a_reason_why_it_cannot_be_judged(self, browser, places, cost):
        number, reply = cost(lambda: answer(browser, places[0], None, cannot_judge="views"))
        assert reply.status_code == 200 and number <= MOST_FOR_A_SAVE

    @pytest.mark.parametrize("revision", [0, 3])
    def test_a_stale_revision(self, browser, places, cost, revision):
        answer(browser, places[0], 3)
        number, reply = cost(lambda: answer(browser, places[0], 1, revision=revision))
        assert reply.status_code == 409 and number <= MOST_FOR_A_SAVE

    def test_a_closed_study(self, browser, study, places, cost):
        study.is_open = False
        study.save()
        number, reply = cost(lambda: answer(browser, places[0]))
        assert reply.status_code == 409 and number <= MOST_FOR_A_SAVE

    def test_a_remark(self, browser, places, cost):
        answer(browser, places[0], 1)
        body = {"revision": 1, "client_uuid": str(uuid.uuid4()), "defects": ["blur"], "comment": ""}
        url = f"/api/assignments/{places[0].public_id}/remarks/"
        number, reply = cost(lambda: browser.post(url, body, "application/json"))
        assert reply.status_code == 200 and number <= MOST_FOR_A_SAVE

    def test_an_undo_of_the_last_answer_and_of_a_named_one(self, browser, study, places, cost):
        url = f"/api/studies/{study.public_id}/undo/"
        for place, named in ((places[0], {}), (places[1], {"assignment": str(places[1].public_id), "revision": 1})):
            answer(browser, place)
            body = {"client_uuid": str(uuid.uuid4()), **named}
            number, reply = cost(lambda body=body: browser.post(url, body, "application/json"))
            assert reply.json()["assignment"]["id"] == str(place.public_id)
            assert number <= MOST_FOR_A_SAVE + 2  # the study's address, and the search for the answer


@pytest.mark.usefixtures("begun")
def test_the_queue_takes_as_many_queries_for_fifty_places_as_for_one(browser, study, cost):
    add_images(study=study, images=GeneratedImageFactory.create_batch(60))
    numbers = {}
    for limit in (1, 10, 50):
        url = f"/api/studies/{study.public_id}/queue/?limit={limit}"
        numbers[limit], reply = cost(lambda url=url: browser.get(url))
        assert len(reply.json()) == limit
    assert numbers[1] == numbers[10] == numbers[50] <= 4


def grow(study, *, to: int, rate) -> None:
    """Let ``to`` people read the study, each of whom has rated two of its images."""
    for _ in range(to - study.memberships.count()):
        reader = UserFactory()
        places = enrol_reader(study=study, reader=reader, expert_level=2)
        for place, value in zip(places[:2], (1, 3), strict=True):
            rate(place, value)


PAGES = ["ratings:study", "ratings:study-agreement"]


@pytest.mark.parametrize("name", PAGES)
def test_a_studys_pages_take_as_many_queries_for_thirty_readers_as_for_three(
    study, places, signed_in, alice, rate, cost, name
):
    rate(places[0], 2)
    url, staff = reverse(name, args=[study.public_id]), signed_in(alice)
    numbers = []
    for readers, images in ((3, 0), (30, 30)):
        grow(study, to=readers, rate=rate)
        add_images(study=study, images=GeneratedImageFactory.create_batch(images))
        staff.get(url)  # what is computed once for a state of the study is not counted
        number, reply = cost(lambda: staff.get(url))
        assert reply.status_code == 200
        numbers.append(number)
    assert numbers[0] == numbers[1] <= 20


def test_the_first_look_at_the_agreement_takes_as_many_queries_for_thirty_readers(
    study, places, signed_in, alice, rate, cost
):
    url, staff = reverse("ratings:study-agreement", args=[study.public_id]), signed_in(alice)
    numbers = []
    for readers in (3, 30):
        grow(study, to=readers, rate=rate)
        rate(places[len(numbers)], 2)
        numbers.append(cost(lambda: staff.get(url))[0])
    assert numbers[0] == numbers[1] <= 30


@pytest.mark.parametrize("who", ["alice", "bob"])
def test_the_list_of_studies(study, images, bob, signed_in, request, rate, cost, who):
    from ratings.services import create_study

    person = signed_in(request.getfixturevalue(who))
    numbers = []
    for studies, readers in ((2, 3), (12, 30)):
        grow(study, to=readers, rate=rate)
        for number in range(len(numbers) * 100, len(numbers) * 100 + studies):
            create_study(name=f"Study {number}", images=images, readers=[(bob, 2)])
        number, reply = cost(lambda: person.get("/studies/"))
        assert reply.status_code == 200
        numbers.append(number)
    assert numbers[0] == numbers[1] <= 12
