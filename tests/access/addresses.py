"""Every address that Django's resolver knows, and how each is filled with what there is in a world."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from django.apps import apps
from django.contrib import admin
from django.urls import URLPattern, get_resolver

_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
_GROUP = re.compile(r"\(\?P<(\w+)>(?:[^()\\]|\\.)*\)")  # of a regular expression: (?P<name>...)


@dataclass(frozen=True)
class Address:
    """One pattern of the resolver, as people write it: "/studies/<study_id>/rate/"."""

    route: str
    name: str  # of the pattern, with its namespaces: "ratings:rate"; "" where it has none

    @property
    def parameters(self) -> list[str]:
        return _PARAMETER.findall(self.route)

    def filled(self, values: dict[str, object]) -> str:
        """The URL with each parameter's value, looked up as "<the segment before it>" or under its own name."""
        return _PARAMETER.sub(lambda match: str(self._value(match, values)), self.route)

    def _value(self, match: re.Match, values: dict[str, object]) -> object:
        before = self.route[: match.start()].strip("/").rpartition("/")[2]
        for key in (self.route, f"{before}/{match[1]}", before, match[1]):
            if key in values:
                return values[key]
        raise KeyError(f"{self.route}: the world holds nothing for {match[1]!r}. Name it in tests/access/world.py.")


def plain(pattern) -> str:
    """A pattern's route without converters and anchors."""
    text = _GROUP.sub(r"<\1>", str(pattern))
    text = _PARAMETER.sub(r"<\1>", text)
    return text.replace("^", "").replace("\\Z", "").replace("$", "").replace("\\", "")


def addresses() -> list[Address]:
    """All of them, in the order of their routes; those that only differ by an admin's model are all there."""
    return sorted(set(_walk(get_resolver().url_patterns, "/", ())), key=lambda address: address.route)


def _walk(patterns, prefix: str, namespaces: tuple[str, ...]) -> Iterator[Address]:
    for pattern in patterns:
        route = prefix + plain(pattern.pattern)
        if isinstance(pattern, URLPattern):
            yield Address(route, ":".join((*namespaces, pattern.name)) if pattern.name else "")
        else:
            inner = (*namespaces, pattern.namespace) if pattern.namespace else namespaces
            yield from _walk(pattern.url_patterns, route, inner)


def admin_models() -> dict[str, type]:
    """ "ratings/study" -> the model, for all that the admin site shows."""
    return {f"{model._meta.app_label}/{model._meta.model_name}": model for model in admin.site._registry}


def is_of_admin_model(address: Address) -> bool:
    parts = address.route.strip("/").split("/")
    return len(parts) > 2 and parts[0] == "admin" and parts[1] in {config.label for config in apps.get_app_configs()}
