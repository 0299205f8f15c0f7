"""The world of a module: made once, changed by no request."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest
from django.conf import settings
from django.test import override_settings

from tests.access.asking import Asking, rolled_back
from tests.access.world import World, build


@pytest.fixture(autouse=True)
def artifact_root():
    """The world's files serve all tests of the module: none gets a folder of its own."""
    return settings.ARTIFACT_ROOT


@pytest.fixture(scope="module")
def world(django_db_setup, django_db_blocker, tmp_path_factory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("access")
    overridden = override_settings(
        ARTIFACT_ROOT=root / "artifacts", VAR_DIR=root, REQUIRE_MFA=True, MAIL_IS_CONFIGURED=True
    )
    # So that a calibration can be planned from a handful of images.
    few = patch("ratings.services.calibration_plans.MIN_UNRATED", 1)
    with django_db_blocker.unblock(), overridden, few, rolled_back():
        yield build()


@pytest.fixture(scope="module")
def asking(world) -> Asking:
    return Asking(world)
