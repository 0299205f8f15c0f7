"""People and places that every test may ask for."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from django.test import Client
from rest_framework.test import APIClient

from tests.factories import UserFactory

pytest_plugins = ["tests.postgres"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items) -> None:
    """Files are handed to several workers in this order: slow ones first, then by their number of tests, so that
    towards the end there is always something short left for the worker that is free."""
    if not hasattr(config, "workerinput"):
        return
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -sizes[item.path]))


@pytest.fixture(autouse=True)
def artifact_root(settings, tmp_path) -> Path:
    """Each test stores its files in a folder of its own."""
    settings.ARTIFACT_ROOT = tmp_path / "artifacts"
    return settings.ARTIFACT_ROOT


@pytest.fixture
def alice(db):
    """An admin."""
    return UserFactory(username="alice", is_staff=True, is_superuser=True)


@pytest.fixture
def bob(db):
    """A reader."""
    return UserFactory(username="bob")


@pytest.fixture
def carol(db):
    """Another reader."""
    return UserFactory(username="carol")


@pytest.fixture
def mallory(db):
    """Somebody with an account and no study."""
    return UserFactory(username="mallory")


@pytest.fixture
def signed_in() -> Callable[..., Client]:
    """``signed_in(user)``: a browser in which the person has signed in; without a person nobody has."""

    def browser(user=None) -> Client:
        client = Client()
        if user is not None:
            client.force_login(user)
        return client

    return browser


@pytest.fixture
def api() -> Callable[..., APIClient]:
    """``api(user)``: an API client that speaks for the person; without a person, for nobody."""

    def client(user=None) -> APIClient:
        api_client = APIClient()
        if user is not None:
            api_client.force_authenticate(user)
        return api_client

    return client
