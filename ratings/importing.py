"""The parts of an import: pictures that are checked and copied, anonymous readers, and their ratings."""

import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.utils import timezone

from generation.importing import StagedImage, Staging, image_row
from generation.models import GeneratedImage
from medsyn.modalities import parse_prompt
from ratings.csv_schema import RatingRow
from ratings.models import Assignment, Membership, Rating, RatingEvent, Study

_BATCH_ROWS = 500


@dataclass(frozen=True)
class Pictures:
    """The pictures that one ratings CSV names, each read and copied once however many rows name it."""

    folder: Path  # of the CSV
    staging: Staging

    def of(self, row: RatingRow) -> StagedImage:
        """Raises ValueError where the row's picture is missing or cannot be read."""
        path = row.resolve(self.folder)
        if not path.is_file():
            raise ValueError(f"image_path names {path}, which is not there. Paths are relative to the CSV's folder.")
        try:
            return self.staging.image_of(path, parse_prompt(row.prompt).kind)
        except ValueError as error:
            raise ValueError(f"image_path: {error}") from error

    def stored(self, row: RatingRow, *, is_phantom: bool) -> GeneratedImage:
        """The image row of a published picture and its prompt."""
        return image_row(self.of(row), row.prompt, parse_prompt(row.prompt).kind, is_phantom=is_phantom)[0]


class _Readers:
    """Anonymous readers of a study: the n-th rating of an image at a level belongs to the level's n-th reader."""

    def __init__(self, study: Study, is_simulated: bool):
        self._study, self._is_simulated = study, is_simulated
        self._readers: dict[tuple[int, int], int] = {}  # (level, number) -> key of the account
        self._ratings_of: Counter[tuple[int, int]] = Counter()  # by image and level
        self._places: Counter[int] = Counter()  # length of each reader's list

    def next_place(self, image: GeneratedImage, expert_level: int) -> Assignment:
        self._ratings_of[image.pk, expert_level] += 1
        key = (expert_level, self._ratings_of[image.pk, expert_level])
        if key not in self._readers:
            self._readers[key] = self._enrol(*key)
        reader_id = self._readers[key]
        self._places[reader_id] += 1
        return Assignment(study=self._study, reader_id=reader_id, image=image, position=self._places[reader_id] - 1)

    def _enrol(self, expert_level: int, number: int) -> int:
        reader = get_user_model().objects.create(
            username=f"imported-{self._study.public_id.hex[:8]}-level{expert_level}-{number}",
            password=make_password(None),
            is_active=False,
        )
        Membership.objects.create(
            study=self._study, reader=reader, expert_level=expert_level, is_simulated=self._is_simulated
        )
        return reader.pk


def store(study: Study, rated: list[tuple[RatingRow, GeneratedImage]], *, is_simulated: bool) -> None:
    """Store one place, one rating and one event per row. Call within a transaction."""
    readers, now = _Readers(study, is_simulated), timezone.now()
    places = Assignment.objects.bulk_create(
        [readers.next_place(image, row.expert_level) for row, image in rated], batch_size=_BATCH_ROWS
    )
    ratings = Rating.objects.bulk_create(
        [
            Rating(
                assignment=place,
                value=row.rating,
                expert_level=row.expert_level,
                protocol_version=study.protocol_version,
                is_simulated=is_simulated,
                submitted_at=now,
            )
            for place, (row, _) in zip(places, rated, strict=True)
        ],
        batch_size=_BATCH_ROWS,
    )
    events = [
        RatingEvent(
            rating=rating,
            revision=1,
            action=RatingEvent.Action.SUBMIT,
            state=rating.state,
            value=rating.value,
            expert_level=rating.expert_level,
            protocol_version=rating.protocol_version,
            is_simulated=rating.is_simulated,
            submitted_at=rating.submitted_at,
            actor_id=rating.assignment.reader_id,
            client_uuid=uuid.uuid4(),
        )
        for rating in ratings
    ]
    RatingEvent.objects.bulk_create(events, batch_size=_BATCH_ROWS)
