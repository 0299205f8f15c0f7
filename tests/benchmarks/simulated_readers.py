"""Readers that rate over HTTP as the rating page does: sign-in, list, answers, pictures. A process of its own.

``python -m tests.benchmarks.simulated_readers`` reads JSON, a line each: first ``People``, who sign in and are
answered with the seconds it took; then any number of ``Plan``, each answered with its ``Outcome``. Requests are
written and replies parsed by hand over asyncio, so that the client takes little of the machine that it measures: it
knows replies with a Content-Length over connections that stay open, which is what our server sends.
"""

import asyncio
import json
import random
import re
import sys
import time
import uuid
from collections import deque
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlencode

TIMEOUT_SECONDS = 60
SIGN_INS_AT_ONCE = 4  # a password takes the server a good part of a second of computing
AHEAD, LIMIT = 20, 50  # of static/js/rating/reel.js: places held ready, places asked for at once


@dataclass(frozen=True)
class People:
    """Who rates where."""

    port: int  # on 127.0.0.1
    studies: dict[str, str]  # name -> public id
    readers: list[str]  # user names
    password: str  # of all of them


@dataclass(frozen=True)
class Plan:
    """What they do."""

    study: str  # its name
    readers: int  # how many of them, the first ones
    seconds: float  # for how long
    pace_seconds: float = 0.0  # mean time an image is looked at; 0: the next answer follows at once
    asks_each_time: bool = False  # one request for the next place after every answer, instead of the page's lists
    fetches_pictures: bool = False


@dataclass
class Outcome:
    """What they met with; times in seconds."""

    saves: list[float] = field(default_factory=list)
    lists: list[float] = field(default_factory=list)
    pictures: list[float] = field(default_factory=list)
    cycles: list[float] = field(default_factory=list)  # an answer, and what it took to have the next place
    stored: dict[str, int] = field(default_factory=dict)  # place -> value, as the server confirmed it
    errors: dict[str, int] = field(default_factory=dict)  # what went wrong -> how often
    wall_seconds: float = 0.0
    client_cpu_seconds: float = 0.0
    finished: int = 0  # readers whose list ended
    stolen: float = 0.0  # share of the processors' time that other guests took; filled in by who measures
    reopened: int = 0  # connections that the server had closed between two requests

    def count_error(self, text: str) -> None:
        self.errors[text] = self.errors.get(text, 0) + 1


class Broken(Exception):
    """The connection broke or the reply is none."""


class Connection:
    """One HTTP/1.1 connection that stays open, with a cookie jar."""

    def __init__(self, port: int):
        self.port = port
        self.cookies: dict[str, str] = {}
        self.reopened = 0
        self._reader = self._writer = None

    async def _send(self, request: bytes) -> bytes:
        """The reply's head. A connection that was kept, but that the server has closed meanwhile, is opened again and
        the request sent once more, as browsers do."""
        if self._writer is not None:
            try:
                self._writer.write(request)
                return await self._reader.readuntil(b"\r\n\r\n")
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                self.close()
                if getattr(error, "partial", b""):
                    raise
                self.reopened += 1
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writer.write(request)
        return await self._reader.readuntil(b"\r\n\r\n")

    async def _exchange(self, request: bytes) -> tuple[int, bytes, bytes]:
        head = await self._send(request)
        lowered = head.lower()
        start = lowered.find(b"\r\ncontent-length:")
        length = int(lowered[start + 17 : lowered.index(b"\r\n", start + 2)]) if start >= 0 else 0
        body = await self._reader.readexactly(length) if length else b""
        if b"\r\nset-cookie:" in lowered:
            for name, value in re.findall(rb"\r\n[Ss]et-[Cc]ookie: *([^=;]+)=([^;]*)", head):
                self.cookies[name.decode()] = value.decode()
        if b"\r\nconnection: close" in lowered:
            self.close()
        return int(head[9:12]), head, body

    async def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes, bytes]:
        """Status, head and body; Broken where there is no reply."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: localhost:{self.port}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if self.cookies:
            lines.append("Cookie: " + "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        if body:
            lines.append(f"Content-Length: {len(body)}")
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await self._exchange("\r\n".join([*lines, "", ""]).encode() + body)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self.close()
            raise Broken(type(error).__name__) from error

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


class Reader:
    """One person at the rating page."""

    def __init__(self, people: People, name: str):
        self.people, self.name = people, name
        self.connection = Connection(people.port)
        self.random = random.Random(name)
        self.key: int | None = None  # the account's, as the rating page states it
        self.answered: set[str] = set()

    async def sign_in(self, few: asyncio.Semaphore) -> None:
        async with few:
            await self._sign_in()

    async def _sign_in(self) -> None:
        _, _, page = await self.connection.request("GET", "/login/")
        token = re.search(rb'name="csrfmiddlewaretoken" value="([^"]+)"', page).group(1).decode()
        form = {"csrfmiddlewaretoken": token, "username": self.name, "password": self.people.password}
        status, _, page = await self.connection.request(
            "POST", "/login/", urlencode(form).encode(), Content_Type="application/x-www-form-urlencoded"
        )
        if status != 302:
            raise RuntimeError(f"{self.name} could not sign in: {status}, {page[:2000].decode(errors='replace')}")
        status, _, page = await self.connection.request(
            "GET", f"/studies/{next(iter(self.people.studies.values()))}/rate/"
        )
        if status != 200:
            raise RuntimeError(f"{self.name} got no rating page: {status}")
        self.key = int(re.search(rb'data-reader="(\d+)"', page).group(1))

    async def rate(self, plan: Plan, outcome: Outcome) -> None:
        """Answer one place after the other until the list or the time ends."""
        self.plan, self.outcome = plan, outcome
        self.ready: deque[dict] = deque()
        self.is_whole = False  # what is ready is all that is left
        await self._fill(first=True)
        until = time.perf_counter() + plan.seconds
        while self.ready and time.perf_counter() < until:
            place = self.ready.popleft()
            if self.plan.fetches_pictures:
                await self._timed(self.outcome.pictures, "GET", place["image"])
            shown = time.time()
            if self.plan.pace_seconds:
                await asyncio.sleep(self.plan.pace_seconds * self.random.uniform(0.5, 1.5))
            started = time.perf_counter()
            await self._save(place, shown)
            await self._fill()
            self.outcome.cycles.append(time.perf_counter() - started)
        self.outcome.finished += not self.ready

    async def _timed(self, times: list[float], method: str, path: str, body: bytes = b"", **headers: str):
        """The reply's body where it is 200, else None; counts what went wrong."""
        started = time.perf_counter()
        try:
            status, _, reply = await self.connection.request(method, path, body, **headers)
        except Broken as broken:
            self.outcome.count_error(f"{method}: {broken}")
            return None
        times.append(time.perf_counter() - started)
        if status != 200:
            self.outcome.count_error(f"{method}: {status} {reply[:120].decode(errors='replace')}")
            return None
        return reply

    async def _save(self, place: dict, shown: float) -> None:
        value = self.random.randint(1, 3)
        defects = self.random.sample(["noise", "blur"], self.random.randint(0, 1)) if value < 3 else []
        body = {
            "value": value,
            "defects": defects,
            "comment": "",
            "shown_at": _iso(shown),
            "first_input_at": _iso(time.time()),
            "active_ms": round(1000 * (time.time() - shown)),
            "display": {"viewport_width": 1440, "viewport_height": 900, "device_pixel_ratio": 2},
            "revision": place["revision"],
            "client_uuid": str(uuid.UUID(int=self.random.getrandbits(128), version=4)),
            "client_time": _iso(time.time()),
            "reader": self.key,
        }
        url = f"/api/assignments/{place['id']}/rating/"
        headers = {"Content_Type": "application/json", "X_CSRFToken": self.connection.cookies["csrftoken"]}
        self.answered.add(place["id"])
        reply = await self._timed(
            self.outcome.saves, "POST", url, json.dumps(body).encode(), Accept="application/json", **headers
        )
        if reply is None:
            return
        stored = json.loads(reply)
        if stored["value"] != value or stored["assignment"] != place["id"]:
            self.outcome.count_error("POST: another answer was stored")
        self.outcome.stored[place["id"]] = stored["value"]

    async def _fill(self, *, first: bool = False) -> None:
        if self.plan.asks_each_time:
            self.ready.clear()
        elif len(self.ready) >= (1 if self.is_whole else AHEAD):
            return
        limit = 1 if self.plan.asks_each_time else LIMIT
        url = f"/api/studies/{self.people.studies[self.plan.study]}/queue/?limit={limit}&reader={self.key}"
        reply = await self._timed([] if first else self.outcome.lists, "GET", url, Accept="application/json")
        if reply is None:
            return
        places = json.loads(reply)
        self.is_whole = len(places) < limit
        held = {place["id"] for place in self.ready}
        self.ready.extend(place for place in places if place["id"] not in held | self.answered)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def simulate(readers: list[Reader], plan: Plan) -> Outcome:
    """All of them at once, each over a connection of its own."""
    outcome = Outcome()
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(reader.rate(plan, outcome) for reader in readers[: plan.readers]))
    outcome.wall_seconds = time.perf_counter() - started
    outcome.client_cpu_seconds = time.process_time() - cpu
    outcome.reopened = sum(reader.connection.reopened for reader in readers)
    return outcome


async def main() -> None:
    people = People(**json.loads(sys.stdin.readline()))
    readers = [Reader(people, name) for name in people.readers]
    started = time.perf_counter()
    few = asyncio.Semaphore(SIGN_INS_AT_ONCE)
    await asyncio.gather(*(reader.sign_in(few) for reader in readers))
    _say(time.perf_counter() - started)
    for line in sys.stdin:
        _say(asdict(await simulate(readers, Plan(**json.loads(line)))))
    for reader in readers:
        reader.connection.close()


def _say(what) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
