"""System checks: what the application needs around it, with a hint for each thing that is missing.

They read settings and folders only: no network, no torch, so `manage.py check` stays quick. The check of the active
release asks the database, and runs where Django runs database checks (`migrate`, `check --database default`).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DatabaseError

_SERVER_BROKERS = ("redis", "rediss", "amqp", "amqps")
_SOCKET_BROKER = "redis+socket"  # redis+socket:///path/to/redis.sock


@register()
def check_artifact_root(app_configs: Sequence[AppConfig] | None, **options: object) -> list[CheckMessage]:
    """Images and releases must have somewhere to go."""
    folder = settings.ARTIFACT_ROOT
    existing = _nearest_existing(folder)
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return []
    return [
        Error(
            f"Files cannot be stored under {folder}: {existing} is not a folder that this account may write to.",
            hint="Change the owner or mode of that folder, or set MEDSYN_VAR_DIR to another one.",
            id="medsyn.E001",
        )
    ]


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


@register()
def check_broker(app_configs: Sequence[AppConfig] | None, **options: object) -> list[CheckMessage]:
    """Jobs must have a way to the workers. Whether a server answers is seen when the worker starts."""
    url = settings.CELERY_BROKER_URL
    scheme, address = urlsplit(url).scheme, urlsplit(url)
    if scheme == "filesystem":
        return _check_broker_folders()
    if scheme == "memory":
        return [
            Warning(
                "MEDSYN_BROKER_URL is memory://: jobs do not reach workers in other processes.",
                hint="Unset it (a broker made of files), or name a Redis or RabbitMQ server.",
                id="medsyn.W002",
            )
        ]
    names_server = scheme in _SERVER_BROKERS and bool(address.hostname)
    names_socket = scheme == _SOCKET_BROKER and bool(address.path)
    if not names_server and not names_socket:
        return [
            Error(
                f"MEDSYN_BROKER_URL names no broker (scheme {scheme or 'missing'!r}).",
                hint="Write redis://host:6379/0 or amqp://user:password@host:5672//, or unset it.",
                id="medsyn.E002",
            )
        ]
    return []


def _check_broker_folders() -> list[CheckMessage]:
    options = settings.CELERY_BROKER_TRANSPORT_OPTIONS
    folders = {options[key] for key in ("data_folder_in", "data_folder_out", "control_folder")}
    closed = sorted(folder for folder in folders if not os.access(folder, os.W_OK | os.X_OK))
    return [
        Error(
            f"The broker's folder {folder} is missing or may not be written to: jobs would not reach the worker.",
            hint="Change its owner or mode, or set MEDSYN_VAR_DIR to another folder.",
            id="medsyn.E003",
        )
        for folder in closed
    ]


@register(Tags.database)
def check_active_release(app_configs: Sequence[AppConfig] | None, **options: object) -> list[CheckMessage]:
    """The release that is served must be on this machine's disk."""
    if not options.get("databases"):
        return []
    try:
        release = apps.get_model("generation", "Release").objects.filter(is_active=True).first()
    except DatabaseError:
        return []  # no tables yet: migrate, which runs this check, is about to make them
    if release is None or (release.folder / "manifest.json").is_file():
        return []
    return [
        Error(
            f"The active release {release} has no folder {release.folder}: jobs that use it will fail.",
            hint="Restore the folder from a backup, or activate another release on the page Releases.",
            id="medsyn.E004",
        )
    ]
