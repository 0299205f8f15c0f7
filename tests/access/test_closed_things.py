"""What the matrix cannot say in a cell: a closed study, ids that nothing has, a body that is too large."""

import uuid

import pytest
from django.conf import settings
from django.urls import NoReverseMatch, reverse

from ratings.models import Study

pytestmark = pytest.mark.django_db


def test_a_reader_of_a_closed_study_sees_no_image_of_it(world, asking):
    Study.objects.filter(pk=world.study.pk).update(is_open=False)
    place, study = world.places["reader"][1].public_id, world.study.public_id
    assert asking.ask("reader", "get", reverse("ratings_api:assignment-image", args=[place])).word == "absent"
    assert asking.ask("reader", "get", reverse("ratings_api:study-queue", args=[study])).response.json() == []
    assert asking.ask("reader", "get", reverse("ratings:rate", args=[study])).word == "done"


def test_unknown_ids_do_not_exist(world, asking):
    for name in ("ratings:study", "ratings:rate", "ratings_api:study", "ratings_api:study-queue"):
        assert asking.ask("admin", "get", reverse(name, args=[uuid.uuid4()])).word == "absent"
    with pytest.raises(NoReverseMatch):
        reverse("ratings:study", args=["1"])
    export = world.values["exports"]
    for name in ("path", "beside", "secret_key", "..%2f..%2fsecret_key"):
        assert asking.ask("admin", "get", f"/api/exports/{export}/{name}/").word == "absent"
        assert asking.ask("admin", "get", f"/data/exports/{export}/{name}/").word in ("absent", "done")


def test_people_and_invitations_that_there_are_not_do_not_exist(asking):
    assert asking.ask("admin", "get", "/people/4711/").word == "absent"
    for action in ("role", "level", "state", "second-step", "password"):
        assert asking.ask("admin", "post", f"/people/4711/{action}/").word == "absent"
    for action in ("link", "withdraw"):
        assert asking.ask("admin", "post", f"/people/invitations/4711/{action}/").word == "absent"


@pytest.mark.parametrize("role", ["anonymous", "reader", "reader_token", "admin"])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(world, asking, role):
    url = reverse("ratings_api:assignment-rating", args=[world.places["reader"][0].public_id])
    body = {"comment": "x" * settings.DATA_UPLOAD_MAX_MEMORY_SIZE, "client_uuid": str(uuid.uuid4())}
    answer = asking.ask(role, "post", url, body)
    assert answer.word == "large" and not answer.changed
    assert "at most" in answer.response.json()["detail"]
