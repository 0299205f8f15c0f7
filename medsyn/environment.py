"""Strict reading of environment variables: a wrong value stops the start and says which one and why."""

import os
import re

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
