"""The API's description as a page for people, drawn from the OpenAPI schema on the server.

Swagger UI and ReDoc are third-party scripts that write styles into the page; the Content-Security-Policy allows
neither, and administrators' pages are no place to relax it. So the schema is set out in HTML: an endpoint is a
heading, its parameters, its body, its replies.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

METHODS = ("get", "post", "put", "patch", "delete")
_MAX_DEPTH = 4  # of fields in fields
_LARGEST = 2**53  # a limit beyond is the database's, not one to know of
_CHOICE = re.compile(r"^\* `([^`]*)` - (.*)$", re.MULTILINE)  # as drf-spectacular describes choices
_TITLES = {
    "anchors": "Anchors",
    "assignments": "Rating",
    "exports": "Exports",
    "generation-jobs": "Generation",
    "gold": "Gold grades",
    "images": "Images",
    "ratings": "Ratings",
    "releases": "Releases",
    "schema": "This description",
    "studies": "Studies",
    "training": "Training",
}


@dataclass(frozen=True)
class Field:
    """A parameter, or a field of a body or of a reply."""

    name: str  # with the names it lies in: "files.ratings"
    kind: str  # in words: "whole number", "list of text"
    is_required: bool
    text: str  # what it means, its range, its choices
    depth: int  # 0 at the top


@dataclass(frozen=True)
class Reply:
    status: str  # "200"
    meaning: str  # "OK"
    kind: str  # what the body is: "Study", "image/png"
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Endpoint:
    """One method of one address."""

    method: str  # "GET"
    path: str
    anchor: str  # its id on the page
    summary: str
    text: str
    parameters: tuple[Field, ...]
    body: tuple[Field, ...]
    replies: tuple[Reply, ...]


def sections(schema: Mapping[str, Any]) -> list[tuple[str, list[Endpoint]]]:
    """(title, endpoints) by the first part of the path, in the order of the titles."""
    found: dict[str, list[Endpoint]] = {}
    for path, operations in sorted(schema["paths"].items()):
        part = path.split("/")[2]
        title = _TITLES.get(part, part.replace("-", " ").capitalize())
        for method in METHODS:
            if method in operations:
                found.setdefault(title, []).append(_endpoint(schema, path, method, operations[method]))
    return sorted(found.items())


def _endpoint(schema: Mapping, path: str, method: str, operation: Mapping) -> Endpoint:
    summary, text = _summary(operation)
    return Endpoint(
        method=method.upper(),
        path=path,
        anchor=operation["operationId"],
        summary=summary,
        text=text,
        parameters=tuple(_parameter(schema, given) for given in operation.get("parameters", ())),
        body=tuple(_fields_of(schema, operation.get("requestBody", {}))),
        replies=tuple(_reply(schema, status, reply) for status, reply in sorted(operation["responses"].items())),
    )


def _summary(operation: Mapping) -> tuple[str, str]:
    """The first sentence, and all of the text where there is more."""
    text = " ".join(operation.get("description", "").split())
    first, dot, rest = text.partition(". ")
    summary = operation.get("summary") or (first + "." if dot else text)
    return summary.rstrip("."), rest and text


def _parameter(schema: Mapping, given: Mapping) -> Field:
    kind, text = _kind(schema, given["schema"])
    where = {"path": "in the address", "query": "behind ?"}.get(given["in"], given["in"])
    texts = (where, given.get("description", ""), text)
    return Field(given["name"], kind, given.get("required", False), _joined(texts), 0)


def _reply(schema: Mapping, status: str, reply: Mapping) -> Reply:
    if status.startswith("4") and reply.get("description"):
        return Reply(status, reply["description"], "", ())
    content = reply.get("content", {})
    media_type, media = next(iter(content.items()), ("", {}))
    is_json = media_type == "application/json"
    kind = _name(schema, media["schema"]) if is_json else media_type
    meaning = HTTPStatus(int(status)).phrase if status.isdecimal() else ""
    return Reply(status, meaning, kind, tuple(_fields_of(schema, reply)) if is_json else ())


def _name(schema: Mapping, described: Mapping) -> str:
    """What a body is called: the name of its schema in words."""
    if described.get("type") == "array":
        return f"list of {_name(schema, described['items'])}"
    name = described.get("$ref", "").rpartition("/")[2]
    if name.startswith("Paginated"):
        return f"page of {_words(name.removeprefix('Paginated').removesuffix('List'))}"
    return _words(name) or _kind(schema, described)[0]


def _words(name: str) -> str:
    """ "OwnRating" -> "own rating"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _fields_of(schema: Mapping, holder: Mapping) -> Iterator[Field]:
    media = holder.get("content", {}).get("application/json")
    if media:
        yield from _fields(schema, media["schema"])


def _fields(schema: Mapping, described: Mapping, prefix: str = "", depth: int = 0) -> Iterator[Field]:
    """The fields of an object, or of the objects in a list, with the fields inside them."""
    described = _resolved(schema, described)
    if described.get("type") == "array":
        described = _resolved(schema, described["items"])
    if depth >= _MAX_DEPTH:
        return
    for name, inner in described.get("properties", {}).items():
        kind, text = _kind(schema, inner)
        is_required = name in described.get("required", ()) and not inner.get("readOnly")
        meaning = _meaning(_resolved(schema, inner).get("description", ""), text)
        yield Field(prefix + name, kind, is_required, meaning, depth)
        yield from _fields(schema, inner, f"{prefix}{name}.", depth + 1)


def _resolved(schema: Mapping, described: Mapping) -> Mapping:
    """The description behind a reference; of one that stands in allOf or oneOf the first, its own words on top."""
    if "$ref" in described:
        return _resolved(schema, schema["components"]["schemas"][described["$ref"].rpartition("/")[2]])
    inner = described.get("allOf") or described.get("oneOf")
    if inner:
        own = {name: value for name, value in described.items() if name not in ("allOf", "oneOf")}
        return {**_resolved(schema, inner[0]), **own}
    return described


_KINDS = {
    ("string", "uuid"): "UUID",
    ("string", "date-time"): "time",
    ("string", "uri"): "address",
    ("string", "binary"): "file",
    ("string", ""): "text",
    ("integer", ""): "whole number",
    ("number", ""): "number",
    ("boolean", ""): "true or false",
    ("object", ""): "object",
}


def _kind(schema: Mapping, described: Mapping) -> tuple[str, str]:
    """What a value is in words, and which values it may have."""
    resolved = _resolved(schema, described)
    if resolved.get("type") == "array":
        kind, text = _kind(schema, resolved["items"])
        return f"list of {kind}", text
    known = (resolved.get("type", ""), resolved.get("format", ""))
    kind = _KINDS.get(known) or _KINDS.get((known[0], "")) or "any"
    return kind + (" or null" if resolved.get("nullable") else ""), _range(resolved)


def _meaning(description: str, text: str) -> str:
    """Description and range; choices that are described one by one are not named twice."""
    described = [f"{code}: {label}" for code, label in _CHOICE.findall(description)]
    return _joined((_CHOICE.sub("", description), "; ".join(described) or text))


def _range(described: Mapping) -> str:
    if "enum" in described:
        return "One of " + ", ".join(str(value) for value in described["enum"] if value not in (None, "")) + "."
    low, high = described.get("minimum"), described.get("maximum")
    if low is not None and high is not None and high < _LARGEST:
        return f"{low} to {high}."
    if low is not None:
        return f"At least {low}."
    if "maxLength" in described:
        return f"At most {described['maxLength']} characters."
    return ""


def _joined(texts) -> str:
    parts = [" ".join(text.split()).rstrip(".") for text in texts if text]
    return ". ".join(part[0].upper() + part[1:] for part in parts if part)
