"""One request by one person, after which the database is as before; and what became of it, in a word."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

from django.conf import settings
from django.db import connection, transaction
from django.shortcuts import resolve_url
from django.test import Client
from django.urls import NoReverseMatch, reverse

from tests.access.world import World

SAFE = ("get", "head", "options")
_WORDS = {
    200: "ok",
    201: "made",
    204: "gone",
    400: "bad",
    401: "refused",
    403: "refused",
    404: "absent",
    405: "method",
    409: "conflict",
    413: "large",
    422: "asks",
    429: "slower",
}
# What looking at something may write: the session, and the cache where it is a table.
_INCIDENTAL = {"django_session", settings.CACHES["default"].get("LOCATION")}
_WRITE = re.compile(r"\s*(?:INSERT(?: OR \w+)? INTO|UPDATE|DELETE FROM|REPLACE INTO)\s+\"?(\w+)\"?", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    word: str  # "ok", "absent", ...: see _WORDS; "sign-in", "set-up" and "done" are redirects
    response: object
    written: frozenset[str]  # tables that the request wrote to, whether or not it was undone afterwards

    @property
    def changed(self) -> frozenset[str]:
        return self.written - _INCIDENTAL


class Asking:
    """Sends requests for the people of a world."""

    def __init__(self, world: World):
        self.world = world
        self._client = Client(raise_request_exception=False)
        self._strict = Client(raise_request_exception=False, enforce_csrf_checks=True)

    def ask(
        self, role: str, method: str, url: str, body=None, *, is_strict: bool = False, is_from_page: bool = False
    ) -> Answer:
        """``body``: a dict, sent as JSON below /api/, as a form elsewhere. The request's writes are rolled back.

        is_strict: with Django's guard against forged requests; is_from_page: with the token that a page carries.
        """
        client = self._strict if is_strict else self._client
        credentials = self.world.credentials[role]
        client.cookies = SimpleCookie()
        headers = {}
        if "session" in credentials:
            client.cookies[settings.SESSION_COOKIE_NAME] = credentials["session"]
        if "token" in credentials:
            headers["authorization"] = f"Token {credentials['token']}"
        if is_from_page:
            client.cookies[settings.CSRF_COOKIE_NAME] = headers["x-csrftoken"] = "a" * 32
        options: dict = {"headers": headers}
        if method not in SAFE:
            options["data"] = body() if callable(body) else body or {}
            if method != "post" or url.startswith("/api/"):
                options["content_type"] = "application/json"
        with rolled_back(), writes() as written:
            response = getattr(client, method)(url, **options)
            response.getvalue()  # streams to their end, which closes their files
        return Answer(word_of(response), response, frozenset(written))


@contextmanager
def rolled_back() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@contextmanager
def writes() -> Iterator[set[str]]:
    """The names of the tables that statements write to."""
    found: set[str] = set()

    def note(execute, sql, parameters, many, context):
        if match := _WRITE.match(sql):
            found.add(match[1])
        return execute(sql, parameters, many, context)

    with connection.execute_wrapper(note):
        yield found


def word_of(response) -> str:
    if 300 <= response.status_code < 400:
        target = urlsplit(response["Location"])
        word = next((word for word, paths in _doors().items() if target.path in paths), "done")
        # Whoever is only asked to sign in comes back afterwards; whoever is done (signed out, say) does not.
        return "done" if word == "sign-in" and "next=" not in target.query else word
    return _WORDS.get(response.status_code, str(response.status_code))


def _doors() -> dict[str, set[str]]:
    """Where people are sent who must do something first."""
    return {
        "sign-in": {resolve_url(settings.LOGIN_URL), reverse("admin:login")},
        "set-up": _existing("mfa_activate_totp", "mfa_reauthenticate"),
    }


def _existing(*names: str) -> set[str]:
    found = set()
    for name in names:
        try:
            found.add(reverse(name))
        except NoReverseMatch:
            continue
    return found
