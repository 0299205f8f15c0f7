"""Strict reading of environment variables: a wrong value stops the start and says which one and why."""

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def text(name: str, default: str) -> str:
    return os.environ.get(name, default)


def flag(name: str, default: bool) -> bool:
    raw = os.environ.get(name, "")
    if raw == "":
        return default
    value = raw.casefold()
    if value not in _TRUE | _FALSE:
        raise ImproperlyConfigured(f"{name}={raw!r} is neither true nor false. Use 1 or 0.")
    return value in _TRUE


def integer(name: str, default: int, *, minimum: int, maximum: int) -> int:
    raw = os.environ.get(name, "")
    if raw == "":
        return default
    try:
        value = int(raw)
    except ValueError:
        raise ImproperlyConfigured(f"{name}={raw!r} is not a whole number.") from None
    if not minimum <= value <= maximum:
        raise ImproperlyConfigured(f"{name}={value} lies outside {minimum} to {maximum}.")
    return value


def names(name: str, default: list[str]) -> list[str]:
    """A list separated by commas; blanks around the entries do not count."""
    raw = os.environ.get(name, "")
    return [entry.strip() for entry in raw.split(",") if entry.strip()] if raw else default


def choice(name: str, default: str, choices: tuple[str, ...]) -> str:
    value = os.environ.get(name, "") or default
    if value not in choices:
        raise ImproperlyConfigured(f"{name}={value!r} is not one of {', '.join(choices)}.")
    return value


def device(name: str, default: str) -> str:
    value = os.environ.get(name, "") or default
    if not re.fullmatch(r"auto|cpu|cuda:\d+", value):
        raise ImproperlyConfigured(f"{name}={value!r} names no device. Use auto, cpu or cuda:0, cuda:1, ...")
    return value


@dataclass(frozen=True)
class MailServer:
    """Where mail is handed in; the fields are those of Django's EMAIL_ settings."""

    backend: str
    host: str = ""
    port: int = 25
    user: str = ""
    password: str = ""
    use_tls: bool = False  # plain connection that turns to TLS (STARTTLS)
    use_ssl: bool = False  # TLS from the first byte


SMTP = "django.core.mail.backends.smtp.EmailBackend"
_SMTP_PORTS = {"smtp": 25, "smtp+tls": 587, "smtps": 465}


def mail_server(name: str) -> MailServer | None:
    """smtp://, smtp+tls:// or smtps://user:password@host:port, or console:// (mail goes to the log); empty: no mail.

    User and password are percent-encoded where they hold ``@``, ``:`` or ``/``.
    """
    raw = os.environ.get(name, "")
    if not raw:
        return None
    address = urlsplit(raw)
    if address.scheme == "console":
        return MailServer("django.core.mail.backends.console.EmailBackend")
    try:
        port = address.port
    except ValueError:
        port = 0
    if address.scheme not in _SMTP_PORTS or not address.hostname or port == 0:
        # The value may hold a password: it is not repeated.
        raise ImproperlyConfigured(f"{name} names no mail server. Write smtp+tls://user:password@host:587.")
    return MailServer(
        backend=SMTP,
        host=address.hostname,
        port=port or _SMTP_PORTS[address.scheme],
        user=unquote(address.username or ""),
        password=unquote(address.password or ""),
        use_tls=address.scheme == "smtp+tls",
        use_ssl=address.scheme == "smtps",
    )


def cache(name: str, table: str) -> dict:
    """A Django cache that all processes share: Redis where its URL is given, else a database table.

    redis://host:6379/1, rediss:// with TLS, or unix:///path/to/redis.sock?db=1.
    """
    raw = os.environ.get(name, "")
    if not raw:
        return {
            "BACKEND": "django.core.cache.backends.db.DatabaseCache",
            "LOCATION": table,
            "OPTIONS": {"MAX_ENTRIES": 10_000},
        }
    address = urlsplit(raw)
    names_server = address.scheme in ("redis", "rediss") and bool(address.hostname)
    names_socket = address.scheme == "unix" and bool(address.path)
    if not names_server and not names_socket:
        raise ImproperlyConfigured(f"{name} names no Redis server. Write redis://host:6379/1, or unset it.")
    return {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": raw}
