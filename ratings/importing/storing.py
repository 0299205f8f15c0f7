"""Checked rows into the database: a study's images, anonymous readers, places, ratings and their events."""

import uuid
from collections import Counter
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.db.models import Count
from django.utils import timezone

from ratings.importing.rows import ImportedRow
from ratings.models import Answer, Assignment, GoldGrade, Membership, Protocol, Rating, RatingEvent, Study, StudyImage

_BATCH_ROWS = 500
_ANSWER_FIELDS = tuple(field.name for field in Answer._meta.fields)
_ROLES = {kind: kind for kind in StudyImage.Role.values} | {"training": StudyImage.Role.GOLD.value}


class Store:
    """Takes the rows of one file in their order; ``finish`` stores the last of them. Call within a transaction."""

    def __init__(self, study: Study, *, is_simulated: bool, created_by=None):
        self._study = study
        self._is_simulated = is_simulated
        self._created_by = created_by
        self._now = timezone.now()
        self._readers = _Readers(study)
        self._images: set[int] = set()
        self._last_version = study.protocol_version
        self._codes: set[str] = set()
        self._has_people = False
        self._batch: list[tuple[Assignment, dict[str, Any], dict[str, Any]]] = []
        self.row_count = 0

    def add(self, row: ImportedRow, image_id: int) -> None:
        """Store one row, whose image has the key ``image_id``."""
        answer = {"protocol_version": self._study.protocol_version, "submitted_at": None, **row.answer}
        answer["submitted_at"] = answer["submitted_at"] or self._now
        answer["is_simulated"] = self._is_simulated or answer.get("is_simulated", False)
        self._has_people |= not answer["is_simulated"]
        self._last_version = max(self._last_version, answer["protocol_version"])
        self._codes.update(answer.get("defects", ()))
        if image_id not in self._images:
            self._join(row, image_id)
        place = self._readers.place_of(row, image_id, answer)
        self._batch.append((place, answer, {"state": Rating.State.SUBMITTED, "revision": 1, **row.rating}))
        self.row_count += 1
        if len(self._batch) >= _BATCH_ROWS:
            self._flush()

    def finish(self) -> None:
        """Store what is left, and what the study is once all rows are known."""
        self._flush()
        self._readers.finish()
        self._count_readers()
        if self.row_count and not self._has_people:
            self._study.is_simulated = True
        self._describe_protocols()
        self._study.frozen_at = self._now
        self._study.save(update_fields=["is_simulated", "protocol_version", "frozen_at"])

    def _join(self, row: ImportedRow, image_id: int) -> None:
        """Make an image one of the study."""
        self._images.add(image_id)
        StudyImage.objects.create(
            study=self._study,
            image_id=image_id,
            block=row.place.get("block", 0),
            role=_ROLES.get(row.place.get("kind", ""), StudyImage.Role.MAIN),
        )
        if row.gold_grade is not None:
            GoldGrade.objects.get_or_create(
                image_id=image_id, defaults={"grade": row.gold_grade, "set_by": self._created_by}
            )

    def _flush(self) -> None:
        places = Assignment.objects.bulk_create([place for place, _, _ in self._batch])
        ratings = Rating.objects.bulk_create(
            Rating(assignment=place, **answer, **standing)
            for place, (_, answer, standing) in zip(places, self._batch, strict=True)
        )
        RatingEvent.objects.bulk_create(
            RatingEvent(
                rating=rating,
                revision=rating.revision,
                action=RatingEvent.Action.SUBMIT,
                state=rating.state,
                actor_id=rating.assignment.reader_id,
                client_uuid=uuid.uuid4(),
                client_time=rating.answered_at,
                **{name: getattr(rating, name) for name in _ANSWER_FIELDS},
            )
            for rating in ratings
        )
        self._batch.clear()

    def _count_readers(self) -> None:
        counts = Assignment.objects.filter(study=self._study).order_by().values_list("image_id")
        counts = dict(counts.annotate(number=Count("reader", distinct=True)))
        entries = list(self._study.study_images.all())
        for entry in entries:
            entry.num_readers = counts.get(entry.image_id, 0)
        StudyImage.objects.bulk_update(entries, ["num_readers"], batch_size=_BATCH_ROWS)

    def _describe_protocols(self) -> None:
        """The versions that the rows were given under, as far as a table tells: their number and the codes used."""
        first = self._study.protocols.get(version=self._study.protocol_version)
        listed = [code for code, _ in first.defects]
        first.defects += [[code, code] for code in sorted(self._codes) if code not in listed]
        first.save(update_fields=["defects"])
        for version in range(first.version + 1, self._last_version + 1):
            Protocol.objects.create(
                study=self._study,
                version=version,
                defects=first.defects,
                reason="As numbered in the imported table, which does not say what changed.",
                created_by=self._created_by,
            )
        self._study.protocol_version = self._last_version


class _Readers:
    """Anonymous readers of a study. A table that names them by pseudonyms has one account for each; else the n-th
    rating of an image at a level belongs to the level's n-th reader."""

    def __init__(self, study: Study):
        self._study = study
        self._accounts: dict[str, int] = {}  # name within the study -> key of the account
        self._levels: dict[int, tuple[int, bool]] = {}  # by account: the newest level, and whether it is simulated
        self._ratings_of: Counter[tuple[int, int]] = Counter()  # by image and level
        self._places: Counter[int] = Counter()  # length of each reader's list

    def place_of(self, row: ImportedRow, image_id: int, answer: dict[str, Any]) -> Assignment:
        """The place, not stored yet, in which the row's reader gave the answer."""
        level = answer["expert_level"]
        name = row.reader
        if not name:
            self._ratings_of[image_id, level] += 1
            name = f"level{level}-{self._ratings_of[image_id, level]}"
        if name not in self._accounts:
            self._accounts[name] = self._enrol(name)
        reader_id = self._accounts[name]
        self._levels[reader_id] = (level, answer["is_simulated"])
        place = {"position": self._places[reader_id], **row.place}
        self._places[reader_id] += 1
        return Assignment(study=self._study, reader_id=reader_id, image_id=image_id, **place)

    def _enrol(self, name: str) -> int:
        reader = get_user_model().objects.create(
            username=f"imported-{self._study.public_id.hex[:8]}-{name}"[:150],
            password=make_password(None),
            is_active=False,
        )
        return reader.pk

    def finish(self) -> None:
        Membership.objects.bulk_create(
            Membership(study=self._study, reader_id=reader_id, expert_level=level, is_simulated=is_simulated)
            for reader_id, (level, is_simulated) in self._levels.items()
        )
