"""Settings come from the environment, strictly: a wrong value stops the start and names its variable."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from medsyn import environment

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = {
    "MEDSYN_MODE": "production",
    "MEDSYN_SECRET_KEY": "x" * 60,
    "MEDSYN_ALLOWED_HOSTS": "medsyn.example",
    "MEDSYN_DATABASE_URL": "postgres://medsyn@localhost/medsyn",
    "MEDSYN_BROKER_URL": "redis://localhost/0",
}


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (lambda name: environment.flag(name, False), "yes", True),
        (lambda name: environment.flag(name, True), "0", False),
        (lambda name: environment.flag(name, True), "", True),
        (lambda name: environment.integer(name, 3, minimum=1, maximum=9), "7", 7),
        (lambda name: environment.names(name, []), " a, b ,", ["a", "b"]),
        (lambda name: environment.choice(name, "x", ("x", "y")), "y", "y"),
        (lambda name: environment.device(name, "auto"), "cuda:1", "cuda:1"),
    ],
)
def test_a_good_value_is_read(monkeypatch, read, value, expected):
    monkeypatch.setenv("MEDSYN_TRIAL", value)
    assert read("MEDSYN_TRIAL") == expected


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda name: environment.flag(name, False), "maybe"),
        (lambda name: environment.integer(name, 3, minimum=1, maximum=9), "ten"),
        (lambda name: environment.integer(name, 3, minimum=1, maximum=9), "10"),
        (lambda name: environment.choice(name, "x", ("x", "y")), "z"),
        (lambda name: environment.device(name, "auto"), "gpu"),
    ],
)
def test_a_wrong_value_names_its_variable(monkeypatch, read, value):
    monkeypatch.setenv("MEDSYN_TRIAL", value)
    with pytest.raises(ImproperlyConfigured, match="MEDSYN_TRIAL"):
        read("MEDSYN_TRIAL")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", None),
        ("console://", environment.MailServer("django.core.mail.backends.console.EmailBackend")),
        ("smtp://relay", environment.MailServer(environment.SMTP, "relay", 25)),
        (
            "smtp+tls://me%40x.example:p%2Fw@mail.example",
            environment.MailServer(environment.SMTP, "mail.example", 587, "me@x.example", "p/w", use_tls=True),
        ),
        ("smtps://mail.example:4465", environment.MailServer(environment.SMTP, "mail.example", 4465, use_ssl=True)),
    ],
)
def test_a_mail_server_is_read(monkeypatch, url, expected):
    monkeypatch.setenv("MEDSYN_TRIAL", url)
    assert environment.mail_server("MEDSYN_TRIAL") == expected


@pytest.mark.parametrize(
    "url", ["mail.example", "smtp://", "http://u:secret@mail.example", "smtp://u:secret@x:999999"]
)
def test_a_wrong_mail_server_names_its_variable_and_keeps_its_password(monkeypatch, url):
    monkeypatch.setenv("MEDSYN_TRIAL", url)
    with pytest.raises(ImproperlyConfigured, match="MEDSYN_TRIAL") as error:
        environment.mail_server("MEDSYN_TRIAL")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "backend"),
    [
        ("", "db.DatabaseCache"),
        ("redis://cache:6379/1", "redis.RedisCache"),
        ("unix:///run/r.sock", "redis.RedisCache"),
    ],
)
def test_a_cache_is_read(monkeypatch, url, backend):
    monkeypatch.setenv("MEDSYN_TRIAL", url)
    read = environment.cache("MEDSYN_TRIAL", table="medsyn_cache")
    assert read["BACKEND"].endswith(backend) and read["LOCATION"] == (url or "medsyn_cache")


@pytest.mark.parametrize("url", ["cache:6379", "redis://", "memcached://host", "unix://"])
def test_a_wrong_cache_names_its_variable(monkeypatch, url):
    monkeypatch.setenv("MEDSYN_TRIAL", url)
    with pytest.raises(ImproperlyConfigured, match="MEDSYN_TRIAL"):
        environment.cache("MEDSYN_TRIAL", table="medsyn_cache")


def start(tmp_path: Path, **variables: str) -> str:
    """What importing the settings says on stderr; empty where they load."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEDSYN_")}
    values = {**kept, "MEDSYN_VAR_DIR": str(tmp_path / "var"), **variables}
    command = [sys.executable, "-c", "import medsyn.settings"]
    return subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True).stderr


def test_the_embedded_mode_needs_nothing_and_keeps_its_key_to_itself(tmp_path):
    assert start(tmp_path) == ""
    key = tmp_path / "var" / "secret_key"
    first = key.read_text()
    assert len(first) > 50 and key.stat().st_mode & 0o077 == 0
    assert start(tmp_path) == "" and key.read_text() == first


@pytest.mark.parametrize("missing", [name for name in PRODUCTION if name != "MEDSYN_MODE"])
def test_production_refuses_to_start_without_its_secrets_and_services(tmp_path, missing):
    variables = {name: value for name, value in PRODUCTION.items() if name != missing}
    assert missing in start(tmp_path, **variables)


def test_production_refuses_debug_pages(tmp_path):
    assert "MEDSYN_DEBUG" in start(tmp_path, **PRODUCTION, MEDSYN_DEBUG="1")
