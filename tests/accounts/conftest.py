"""People of every role, a study that bob reads, and codes as an authenticator app shows them."""

import base64
import hashlib
import hmac
import struct
import time
from collections.abc import Callable

import pytest
from django.core.cache import cache
from django.test import Client

from accounts.models import Person
from ratings.models import Study
from ratings.services import create_study
from tests.factories import PASSWORD, GeneratedImageFactory, StudyOwnerFactory


@pytest.fixture(autouse=True)
def fresh_limits(db):
    """Failures that other tests counted are forgotten."""
    cache.clear()


@pytest.fixture
def olga(db):
    """A study owner."""
    return StudyOwnerFactory(username="olga", email="olga@hospital.example")


@pytest.fixture
def study(bob) -> Study:
    return create_study(name="Chest pilot", images=GeneratedImageFactory.create_batch(4), readers=[(bob, 2)])


@pytest.fixture
def person_of() -> Callable[..., Person]:
    """``person_of(user)``: the same account as the pages of people see it."""
    return lambda user: Person.objects.in_full().get(pk=user.pk)


@pytest.fixture
def enter() -> Callable[..., Client]:
    """``enter(name)``: a browser in which the sign-in form was filled in; its last reply is ``client.reply``."""

    def fill_in(name: str, password: str = PASSWORD, client: Client | None = None, **extra) -> Client:
        client = client or Client()
        client.reply = client.post("/login/", {"username": name, "password": password}, **extra)
        return client

    return fill_in


def totp(secret: str, *, steps: int = 0) -> str:
    """RFC 6238 with SHA-1, 30 s and six digits, written down a second time: ``steps`` periods from now."""
    counter = struct.pack(">Q", int(time.time()) // 30 + steps)
    digest = hmac.new(base64.b32decode(secret), counter, hashlib.sha1).digest()
    offset = digest[-1] & 0x0F
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFFFFFF
    return f"{number % 1_000_000:06d}"
