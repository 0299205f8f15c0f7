"""What must hold for the application as a whole: production settings, no secret in the repository, limits, and an API
that says what it answers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command
from django.test import Client
from drf_spectacular.generators import SchemaGenerator

from medsyn.api_refusals import METHODS
from tests.access.headers import header_faults
from tests.access.matrix import read_matrix

ROOT = Path(__file__).resolve().parent.parent
PRODUCTION = {
    "MEDSYN_MODE": "production",
    "MEDSYN_SECRET_KEY": "".join(chr(33 + number % 90) for number in range(7, 700, 9)),
    "MEDSYN_ALLOWED_HOSTS": "medsyn.example",
    "MEDSYN_DATABASE_URL": "postgres://medsyn@localhost/medsyn",
    "MEDSYN_BROKER_URL": "redis://localhost/0",
}
# Prints what production sets after Django's own checks of a deployment found nothing.
CHECK = """
import json, django
django.setup()
from django.conf import settings
from django.core.management import call_command
call_command("check", deploy=True, fail_level="WARNING")
names = [name for name in dir(settings) if name.startswith(("SESSION_COOKIE", "CSRF_COOKIE", "SECURE_"))]
print(json.dumps({name: getattr(settings, name) for name in [*names, "DEBUG", "REQUIRE_MFA"]}))
"""


# --- production ---


@pytest.fixture(scope="module")
def production(tmp_path_factory) -> dict:
    """Settings of production by name, after ``check --deploy``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEDSYN_")}
    environment = {**kept, **PRODUCTION, "DJANGO_SETTINGS_MODULE": "medsyn.settings"}
    environment["MEDSYN_VAR_DIR"] = str(tmp_path_factory.mktemp("production"))
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_production_passes_djangos_checks_of_a_deployment(production):
    assert production["DEBUG"] is False and production["REQUIRE_MFA"] is True
    assert production["SECURE_SSL_REDIRECT"] and production["SECURE_HSTS_SECONDS"] >= 365 * 24 * 3600


def test_cookies_of_production_go_over_tls_only_and_to_no_script_or_other_site(production):
    assert production["SESSION_COOKIE_SECURE"] and production["CSRF_COOKIE_SECURE"]
    assert production["SESSION_COOKIE_HTTPONLY"]
    assert {production["SESSION_COOKIE_SAMESITE"], production["CSRF_COOKIE_SAMESITE"]} <= {"Lax", "Strict"}


# --- the repository ---

SECRETS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36}\b",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "a W&B key": r"WANDB_API_KEY\s*=\s*[\"']?[0-9a-f]{40}",
    "a secret key": r"SECRET_KEY\s*=\s*[\"'][^\"'{$]{8,}",
    "a password": r"(?i)\bpassword\s*=\s*[\"'](?!password)[^\"'{$]{4,}[\"']",
    "a URL with a password": r"\b[a-z+]+://[\w.-]+:(?!password)[^@\s\"'{$<]{3,}@(?!localhost|host)[\w.-]+",
}
OF_TESTS = ("a password", "a secret key", "a URL with a password")  # made up, for a database that is thrown away
TEXTS = (".py", ".sh", ".md", ".yaml", ".toml", ".txt", ".js", ".html", ".css", ".json", ".cfg")


def tracked_texts() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is tracked is not known")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = listed.stdout.splitlines()
    return [ROOT / name for name in names if name.endswith(TEXTS) and (ROOT / name).is_file()]


def test_no_secret_and_no_default_password_lies_in_the_repository():
    found = []
    for path in tracked_texts():
        skipped = OF_TESTS if path.is_relative_to(ROOT / "tests") else ()
        text = path.read_text(errors="replace")
        for what, pattern in SECRETS.items():
            hits = [] if what in skipped else [match[0] for match in re.finditer(pattern, text)]
            found += [f"{path.relative_to(ROOT)}: {what}: {hit[:40]}" for hit in hits]
    assert found == []


@pytest.mark.parametrize("what", SECRETS)
def test_the_patterns_find_what_they_are_for(what):
    samples = {
        "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
        "an AWS key": "AKIA" + "ABCDEFGHIJKLMNOP",
        "a GitHub token": "ghp_" + "a1" * 18,
        "a Hugging Face token": "hf_" + "a1" * 17,
        "a W&B key": "WANDB_API_KEY=" + "0a" * 20,
        "a secret key": "SECRET_KEY = 'django" + "-insecure-x'",
        "a password": "create_user(password=" + "'admin123')",
        "a URL with a password": "postgres://medsyn:" + "hunter2@db.example/medsyn",
    }
    assert re.search(SECRETS[what], samples[what])


def test_no_template_holds_script_or_style():
    inline = re.compile(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=|javascript:", re.IGNORECASE)
    found = {path.name: inline.findall(path.read_text()) for path in (ROOT / "templates").rglob("*.html")}
    assert not {name: hits for name, hits in found.items() if hits}


# --- requests ---


def test_a_form_that_is_too_large_is_refused(client, bob):
    client.force_login(bob)
    body = {"old_password": "x" * (settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)}
    assert client.post("/password/", body, content_type="application/x-www-form-urlencoded").status_code in (400, 413)


def test_another_host_is_not_answered(db):
    assert Client(raise_request_exception=False).get("/login/", headers={"host": "evil.example"}).status_code == 400


def test_errors_carry_the_headers_of_every_reply(db, bob, monkeypatch):
    from ratings.views import studies

    client = Client(raise_request_exception=False)
    client.force_login(bob)
    assert list(header_faults("/nothing/", client.get("/nothing/"))) == []

    def broken(*args):
        raise RuntimeError("broken")

    monkeypatch.setattr(studies.services, "progress_of", broken)
    response = client.get("/studies/")
    assert response.status_code == 500 and list(header_faults("/studies/", response)) == []


def test_the_header_check_finds_what_is_missing(client, db):
    response = client.get("/login/")
    assert list(header_faults("/login/", response)) == []
    response.headers["Content-Security-Policy"] += "; script-src 'self' 'unsafe-inline'"
    response.headers["Cache-Control"] = "public, max-age=60"
    response.headers["Server-Timing"] = "db;dur=3"
    del response.headers["X-Frame-Options"]
    faults = " ".join(header_faults("/login/", response))
    assert all(word in faults for word in ("unsafe-inline", "shared cache", "Server-Timing", "X-Frame-Options"))


# --- the API's description ---


@pytest.fixture(scope="module")
def schema() -> dict:
    return SchemaGenerator().get_schema(request=None, public=True)


def test_the_schema_is_valid_and_made_without_a_warning(tmp_path, capsys):
    call_command("spectacular", validate=True, fail_on_warn=True, file=str(tmp_path / "schema.yaml"))
    assert (tmp_path / "schema.yaml").stat().st_size > 10_000


def operations(schema: dict) -> dict[tuple[str, str], dict]:
    """(method, route as in the matrix) -> operation."""
    return {
        (method, re.sub(r"{\w+}", "<>", path)): operation
        for path, found in schema["paths"].items()
        for method, operation in found.items()
        if method in METHODS
    }


def test_every_endpoint_says_what_it_does(schema):
    silent = [key for key, operation in operations(schema).items() if len(operation.get("description", "")) < 5]
    assert silent == []


STATUSES = {"ok": "200", "made": "201", "gone": "204", "refused": "403", "absent": "404", "bad": "400"}


def test_every_reply_of_the_matrix_is_documented(schema):
    documented = operations(schema)
    undocumented = []
    for line in read_matrix():
        route = re.sub(r"<\w+>", "<>", line.route)
        if not route.startswith("/api/") or route == "/api/schema/":
            continue
        for method in line.methods:
            wanted = {STATUSES[word] for word in line.expected.values()}
            missing = wanted - documented[method, route]["responses"].keys()
            undocumented += [f"{method} {line.route}: {status}" for status in sorted(missing)]
    assert undocumented == []


def test_the_page_for_people_holds_the_whole_schema(schema, signed_in, alice):
    reply = signed_in(alice).get("/api-docs/")
    held = re.search(
        r'<script id="api-schema" type="application/json">(.*?)</script>', reply.content.decode(), re.DOTALL
    )
    assert operations(json.loads(held[1])).keys() == operations(schema).keys() and len(operations(schema)) > 40
    policy = reply["Content-Security-Policy"]
    assert "img-src 'self' blob: data:" in policy and "unsafe" not in policy
