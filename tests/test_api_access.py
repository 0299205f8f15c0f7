"""The API as a whole: closed without credentials, open to a token, described by a schema for administrators."""

import pytest
from rest_framework.authtoken.models import Token

ADDRESSES = ("/api/studies/", "/api/ratings/", "/api/exports/", "/api/generation-jobs/", "/api/images/")


@pytest.mark.parametrize("address", [*ADDRESSES, "/api/releases/", "/api/training/runs/", "/api/schema/"])
def test_a_token_opens_what_is_closed_without_one(client, alice, address):
    assert client.get(address).status_code in (401, 403)
    token = Token.objects.create(user=alice)
    assert client.get(address, headers={"Authorization": f"Token {token.key}"}).status_code == 200


def test_a_readers_token_reaches_their_studies_and_nothing_of_the_administrators(client, bob):
    headers = {"Authorization": f"Token {Token.objects.create(user=bob).key}"}
    assert client.get("/api/studies/", headers=headers).status_code == 200
    assert client.get("/api/images/", headers=headers).status_code == 403
    assert client.get("/api/schema/", headers=headers).status_code == 403
