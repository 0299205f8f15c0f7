"""The reading room of a simulated loop: studies, and experts who rate over the API with accounts of their own.

An expert asks for the reading list and submits answers by HTTP requests against the application itself, in this
process (django.test.Client: the whole stack of middleware, views and serializers, without a socket), each with the
token of an account. Which image a place shows, and whether it shows it a second time, the reply does not tell; the
simulation looks that up in the database, as an expert would by looking at the picture.
"""

import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from django.test import Client
from rest_framework.authtoken.models import Token

from generation.models import GeneratedImage
from ratings.csv_schema import read_tidy_file, tidy_path
from ratings.models import Assignment, Export, Study
from ratings.services import add_images, create_study, enrol_reader, freeze_export
from training.closed_loop.identities import identify
from training.simulated_rows import expert_account
from training.simulation.experts import answering_ms
from training.simulation.loop.figures import Verdicts
from training.simulation.loop.panel import Panel
from training.simulation.loop.settings import LoopSettings

_TURN = 20  # places that an expert answers before the next one reads: a portion of an open pool
_TURN_STREAM = 24


class ApiError(RuntimeError):
    """The application refused what an expert asked for."""


class Room:
    """The study of one arm and its experts."""

    def __init__(self, arm: str, settings: LoopSettings, panel: Panel):
        self._panel = panel
        people = [expert_account(number) for number in range(len(panel.experts))]
        self._tokens = [Token.objects.get_or_create(user=person)[0] for person in people]
        self.study = self._study(arm, settings)
        self._client = Client(SERVER_NAME="localhost")
        self._quality: dict[str, tuple[str, float]] = {}  # by image file's sha256 and prompt: name, gold quality

    def _study(self, arm: str, settings: LoopSettings) -> Study:
        name = f"Closed loop, {arm} (simulated experts)"
        known = Study.objects.filter(name=name).first()
        if known is not None:
            return known
        study = create_study(
            name=name,
            images=(),
            order_seed=self._panel.seed,
            is_simulated=True,
            protocol={
                "overlap_target": settings.ratings_per_image,
                "repeat_share": settings.repeat_share,
                "calibration_share": settings.calibration_share,
            },
            description="Rated by simulated experts. No clinician has rated these images.",
        )
        identify(study, name)
        for token, expert in zip(self._tokens, self._panel.experts, strict=True):
            enrol_reader(study=study, reader=token.user, expert_level=expert.level, is_simulated=True)
        return study

    def add(self, rows: Sequence[GeneratedImage], random_rows: Sequence[GeneratedImage]) -> None:
        """A round's images; calibration images are drawn from the random ones alone."""
        add_images(study=self.study, images=rows, calibrate_from=random_rows)

    def rate_all(self, known: dict[int, tuple[str, float]], *, on_rating: Callable[[], None] = lambda: None) -> int:
        """Experts take turns, in an order drawn anew each time, until nobody has anything left; number of answers.

        known: name and gold quality by key of the image's row.
        """
        rng = np.random.default_rng([self._panel.seed, self.study.pk, _TURN_STREAM])
        number, is_working = 0, True
        while is_working:
            is_working = False
            for expert in rng.permutation(len(self._tokens)):
                answered = self._take_turn(int(expert), known, rng, on_rating)
                is_working, number = is_working or answered > 0, number + answered
        return number

    def _take_turn(self, expert: int, known: dict, rng: np.random.Generator, on_rating: Callable[[], None]) -> int:
        places = self._request(expert, "get", f"/api/studies/{self.study.public_id}/queue/?limit={_TURN}")
        shown = {
            str(key): (image, occurrence)
            for key, image, occurrence in Assignment.objects.filter(
                public_id__in=[place["id"] for place in places]
            ).values_list("public_id", "image_id", "occurrence")
        }
        for place in places:
            image, occurrence = shown[place["id"]]
            name, quality = known[image]
            value = self._panel.grade(expert, quality, image=name, showing=occurrence)
            self._answer(expert, place, value, active_ms=answering_ms(rng))
            on_rating()
        return len(places)

    def _answer(self, expert: int, place: dict, value: int, *, active_ms: int) -> None:
        body = {
            "value": value,
            "revision": place["revision"],
            "active_ms": active_ms,
            "client_uuid": str(uuid.uuid5(uuid.UUID(place["id"]), "closed loop")),
        }
        stored = self._request(expert, "post", f"/api/assignments/{place['id']}/rating/", body)
        if stored["value"] != value:
            raise ApiError(f"Place {place['id']} was rated {value}, and {stored['value']} was stored.")

    def _request(self, expert: int, method: str, path: str, body: dict | None = None):
        """The reply's JSON; raises ApiError for any status but 200."""
        send = getattr(self._client, method)
        given = {} if body is None else {"data": body, "content_type": "application/json"}
        reply = send(path, **given, headers={"authorization": f"Token {self._tokens[expert].key}"})
        if reply.status_code != 200:
            raise ApiError(f"{method.upper()} {path}: {reply.status_code}, {reply.content[:300]!r}")
        return reply.json()

    def exported(self, ratings_file: Path) -> Export | None:
        """The export that wrote this file; None where one was cut off before it was recorded."""
        return next(
            (each for each in Export.objects.filter(study=self.study) if each.path == ratings_file.absolute()), None
        )

    def export(self, folder: Path) -> Export:
        """The ratings so far as the application exports them."""
        folder.mkdir(parents=True, exist_ok=True)
        return freeze_export(study=self.study, output=folder)


def read_verdicts(
    ratings_file: Path, names: dict[tuple[str, str], str], *, among: Collection[str] | None = None
) -> Verdicts:
    """What an export says of the calibration images. names: by sha256 of the file and prompt. among: names of those
    that count; None: all."""
    rows = [row for row in read_tidy_file(tidy_path(ratings_file)) if row.role == "calibration" and row.rating]
    if among is not None:
        rows = [row for row in rows if names[row.image_sha256, row.prompt] in among]
    rows.sort(key=lambda row: (names[row.image_sha256, row.prompt], row.reader))
    by_image: dict[str, list[int]] = {}
    for row in rows:
        by_image.setdefault(names[row.image_sha256, row.prompt], []).append(row.rating.rating)
    place = {name: number for number, name in enumerate(by_image)}
    readers = {reader: number for number, reader in enumerate(sorted({row.reader for row in rows}))}
    return Verdicts(
        images=tuple(by_image),
        grades=tuple(map(tuple, by_image.values())),
        image=np.array([place[names[row.image_sha256, row.prompt]] for row in rows], dtype=int),
        reader=np.array([readers[row.reader] for row in rows], dtype=int),
        grade=np.array([row.rating.rating for row in rows], dtype=int),
    )


def count_rows(ratings_file: Path) -> dict[str, int]:
    """Ratings spent by what they were for: training, calibration, repeats."""
    spent = {"training": 0, "calibration": 0, "repeats": 0}
    for row in read_tidy_file(tidy_path(ratings_file)):
        name = {"calibration": "calibration", "repeat": "repeats"}.get(row.role, "training")
        spent[name] += row.rating is not None
    return spent
