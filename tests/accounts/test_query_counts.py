"""What accounts cost the people who rate: nothing."""

import uuid

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from tests.factories import UserFactory


@pytest.mark.parametrize("require_mfa", [False, True])
def test_saving_a_rating_asks_nothing_of_accounts(study, bob, signed_in, settings, require_mfa):
    settings.REQUIRE_MFA = require_mfa
    client = signed_in(bob)
    for place in study.assignments.filter(reader=bob)[:2]:  # the second: the first one freezes the protocol
        url = reverse("ratings_api:assignment-rating", args=[place.public_id])
        body = {"value": 2, "client_uuid": str(uuid.uuid4()), "revision": 0}
        with CaptureQueriesContext(connection) as captured:
            assert client.post(url, body, content_type="application/json").status_code == 200
    asked = [query["sql"] for query in captured if "SAVEPOINT" not in query["sql"]]
    elsewhere = [sql for sql in asked if not any(f'"{table}' in sql for table in ("ratings_", "django_session"))]
    assert len(elsewhere) == 1 and '"auth_user"' in elsewhere[0], elsewhere
    assert len(asked) <= 6, asked


def test_the_list_of_people_takes_as_many_queries_however_many_people(
    alice, signed_in, django_assert_max_num_queries
):
    client = signed_in(alice)
    UserFactory.create_batch(20)
    with django_assert_max_num_queries(6):
        assert client.get("/people/").status_code == 200
