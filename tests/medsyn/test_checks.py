"""System checks find what is missing and say what to do."""

import os

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from generation.models import Release
from medsyn.checks import check_active_release, check_artifact_root, check_broker


def found(messages) -> list[str]:
    assert all(message.hint for message in messages)
    return [message.id for message in messages]


def test_a_sound_installation_has_nothing_to_say(artifact_root):
    assert found(check_artifact_root(None)) == []
    assert found(check_broker(None)) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(settings, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    settings.ARTIFACT_ROOT = tmp_path / "closed" / "artifacts"
    assert found(check_artifact_root(None)) == ["medsyn.E001"]


def test_a_file_where_the_folder_should_be(settings, tmp_path):
    (tmp_path / "taken").write_text("")
    settings.ARTIFACT_ROOT = tmp_path / "taken" / "artifacts"
    assert found(check_artifact_root(None)) == ["medsyn.E001"]
    with pytest.raises(SystemCheckError, match="MEDSYN_VAR_DIR"):
        call_command("check")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost:6379/0", []),
        ("amqp://user:password@host//", []),
        ("memory://", ["medsyn.W002"]),
        ("redis://", ["medsyn.E002"]),
        ("localhost:6379", ["medsyn.E002"]),
        ("", ["medsyn.E002"]),
    ],
)
def test_the_brokers_address(settings, url, expected):
    settings.CELERY_BROKER_URL = url
    messages = check_broker(None)
    assert found(messages) == expected
    assert "password" not in str([message.msg for message in messages])


def test_a_broker_of_files_needs_its_folders(settings, tmp_path):
    settings.CELERY_BROKER_URL = "filesystem://"
    settings.CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(tmp_path),
        "data_folder_out": str(tmp_path),
        "control_folder": str(tmp_path / "gone"),
    }
    messages = check_broker(None)
    assert found(messages) == ["medsyn.E003"]
    assert "gone" in messages[0].msg


@pytest.mark.django_db
def test_the_active_releases_folder_must_be_there(artifact_root):
    release = Release.objects.create(digest="a" * 64, name="first", quality_threshold=0.6, manifest={})
    assert found(check_active_release(None, databases=["default"])) == []
    Release.objects.update(is_active=True)
    assert found(check_active_release(None, databases=["default"])) == ["medsyn.E004"]
    assert found(check_active_release(None)) == [], "an ordinary check leaves the database alone"
    release.folder.mkdir(parents=True)
    (release.folder / "manifest.json").write_text("{}")
    assert found(check_active_release(None, databases=["default"])) == []
