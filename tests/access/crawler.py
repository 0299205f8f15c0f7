"""Everything that somebody signed in can lay hands on: every address found in a reply, every address of the resolver
with every identifier there is, and what the rating page sends. All bytes are kept: bodies, headers, cookies."""

import itertools
import json
import re
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from django.test import Client

from tests.access.addresses import Address, addresses, is_of_admin_model

_IN_MARKUP = re.compile(r"""(?:href|src|action|data-[\w-]+)=["']([^"']+)["']""")
_IN_SCRIPT = re.compile(r"""(?:from|import|url)\s*\(?\s*["']?(\.{0,2}/[\w./-]+)""")
_NOWHERE = str(uuid.UUID(int=0))  # what pages put where their script puts a place
_SIGNING_OUT = ("/logout/", "/admin/logout/")


@dataclass(frozen=True)
class Reply:
    """What came back of one request."""

    method: str
    url: str
    status: int
    headers: tuple[tuple[str, str], ...]  # cookies as Set-Cookie
    body: bytes

    @property
    def kind(self) -> str:
        return dict(self.headers).get("Content-Type", "").partition(";")[0]

    @property
    def head(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.headers)

    @property
    def is_static(self) -> bool:
        return self.url.startswith("/static/")

    def json(self):
        return json.loads(self.body) if self.kind == "application/json" and self.body else None


@dataclass
class Crawl:
    """A browser or a token, and all that it has been told."""

    client: Client
    headers: Mapping[str, str] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)  # the reader's own, in order
    replies: list[Reply] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def send(self, method: str, url: str, body: dict | None = None) -> Reply:
        options = {"data": body, "content_type": "application/json"} if body is not None else {}
        response = getattr(self.client, method)(url, headers=dict(self.headers), **options)
        content = response.getvalue()
        cookies = [("Set-Cookie", morsel.OutputString()) for morsel in response.cookies.values()]
        reply = Reply(method, url, response.status_code, (*response.headers.items(), *cookies), content)
        self.replies.append(reply)
        self.client.cookies.pop("messages", None)
        return reply

    def follow(self, *start: str) -> None:
        """GET these, and all that their replies name."""
        queue = deque(start)
        while queue:
            url = queue.popleft()
            path = urlsplit(url).path
            if url in self.asked or path in _SIGNING_OUT:
                continue
            self.asked.add(url)
            queue.extend(self._named_in(self.send("get", url)))

    def _named_in(self, reply: Reply) -> Iterator[str]:
        found = [value for name, value in reply.headers if name == "Location"]
        if reply.kind in ("text/html", "image/svg+xml"):
            found += _IN_MARKUP.findall(reply.body.decode())
        elif reply.kind in ("text/javascript", "text/css", "application/javascript"):
            found += _IN_SCRIPT.findall(reply.body.decode())
        elif reply.kind == "application/json":
            found += [text for _, text in strings_of(reply.json()) if text.startswith(("/", "http://testserver/"))]
        for text in found:
            split = urlsplit(urljoin(reply.url, text.replace("&amp;", "&").replace("http://testserver", "")))
            if text.startswith(("#", "mailto:")) or split.scheme or split.netloc or not split.path.startswith("/"):
                continue
            url = split.path + (f"?{split.query}" if split.query else "")
            yield from (url.replace(_NOWHERE, place) for place in self.places) if _NOWHERE in url else (url,)

    def try_all(self, identifiers: Mapping[str, Iterable[object]]) -> None:
        """GET every address of the resolver with all that is known: ``identifiers`` by converter ("uuid", "int",
        "str"). Pages of the admin's models, which are alike, with the first of each."""
        for address in addresses():
            known = {name: list(values) for name, values in identifiers.items()}
            if is_of_admin_model(address):
                known = {name: values[:1] for name, values in known.items()}
            for url in filled_in_all_ways(address, known):
                if url not in self.asked and url not in _SIGNING_OUT:
                    self.asked.add(url)
                    self.send("get", url)


def filled_in_all_ways(address: Address, known: Mapping[str, list]) -> Iterator[str]:
    kinds = [_kind_of(parameter) for parameter in address.parameters]
    for values in itertools.product(*(known[kind] for kind in kinds)):
        # Each occurrence has its own value: the parameters of a route have different names.
        yield address.filled(dict(zip(address.parameters, values, strict=True)))


def _kind_of(parameter: str) -> str:
    if parameter in ("public_id", "study_id", "assignment_id", "anchor_id", "image_id"):
        return "uuid"
    return "int" if parameter in ("pk", "step", "id", "content_type_id", "object_id") else "str"


def strings_of(value, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, string) of everything in a JSON value; numbers as they are written."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from strings_of(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_of(inner, key)
    elif value is not None and not isinstance(value, bool):
        yield key, str(value)


def keys_of(value) -> Iterator[str]:
    """Every key at any depth of a JSON value."""
    if isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from keys_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner)


def png_chunks(content: bytes) -> list[str]:
    """Names of a PNG's chunks in order, doubles once. What stands behind the end counts as "after the end"."""
    names, at = [], 8
    while at < len(content):
        length, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8].decode("latin-1")
        names.append(name)
        at += 12 + length
        if name == "IEND":
            break
    return [*dict.fromkeys(names), *(["after the end"] if at < len(content) else [])]
