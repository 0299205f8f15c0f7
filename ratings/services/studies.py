"""Studies and their stored reading lists. They change only under a lock on the study."""

import hashlib
import secrets
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import transaction
from django.db.models import Max

from generation.models import GeneratedImage
from ratings.csv_schema import EXPERT_LEVELS
from ratings.models import Assignment, Expertise, Membership, Protocol, Study, StudyImage
from ratings.services.errors import StudyError


def reading_order(order_seed: int, reader_key: int, block: int, image_keys: Iterable[uuid.UUID]) -> list[uuid.UUID]:
    """The order in which a reader sees the images of a block.

    Sorts by sha256 of (seed, reader, block, image): a uniformly random order that depends on nothing else, neither
    on the order of ``image_keys`` nor on other readers nor on a library's random generator.
    """

    def place(image_key: uuid.UUID) -> bytes:
        return hashlib.sha256(f"{order_seed}/{reader_key}/{block}/{image_key}".encode()).digest()

    return sorted(image_keys, key=place)


def _require_level(expert_level: int) -> None:
    if expert_level not in EXPERT_LEVELS:
        raise StudyError(f"expert_level is {expert_level!r}; it must be 1 (trainee), 2 (specialist) or 3 (senior).")


def _next_position(study: Study, reader_id: int) -> int:
    last = Assignment.objects.filter(study=study, reader_id=reader_id).aggregate(last=Max("position"))["last"]
    return 0 if last is None else last + 1


def _extend_reading_list(study: Study, reader_id: int, blocks: dict[int, list[GeneratedImage]]) -> list[Assignment]:
    """Append whole blocks, each in its own order, behind what the reader's list already holds."""
    position = _next_position(study, reader_id)
    assignments = []
    for block in sorted(blocks):
        by_key = {image.public_id: image for image in blocks[block]}
        for key in reading_order(study.order_seed, reader_id, block, by_key):
            assignments.append(
                Assignment(study=study, reader_id=reader_id, image=by_key[key], position=position, block=block)
            )
            position += 1
    return Assignment.objects.bulk_create(assignments, batch_size=500)


@transaction.atomic
def create_study(
    *,
    name: str,
    images: Iterable[GeneratedImage],
    readers: Iterable[tuple[Any, int]] = (),
    order_seed: int | None = None,
    description: str = "",
    is_simulated: bool = False,
    created_by=None,
) -> Study:
    """A study of ``images`` (block 0; none yet is allowed), read by ``readers``: pairs of person and level.

    Without ``order_seed`` one is drawn; it is recorded either way. Raises StudyError for a name that is empty or
    taken and for a level outside 1 to 3.
    """
    name = name.strip()
    if not name:
        raise StudyError("The study has no name. Give it one that its readers will recognise.")
    if Study.objects.filter(name=name).exists():
        raise StudyError(f"There is a study named {name!r} already. Choose another name.")
    study = Study.objects.create(
        name=name,
        description=description,
        order_seed=secrets.randbelow(2**31) if order_seed is None else order_seed,
        is_simulated=is_simulated,
        created_by=created_by,
    )
    Protocol.objects.create(study=study, created_by=created_by)
    add_images(study=study, images=images)
    for reader, expert_level in readers:
        enrol_reader(study=study, reader=reader, expert_level=expert_level)
    return study


@transaction.atomic
def add_images(*, study: Study, images: Iterable[GeneratedImage]) -> int:
    """Put images into a new block behind every reader's list; places handed out before never move.

    Images that the study already has are left out. Returns how many were added.
    """
    study = Study.objects.select_for_update().get(pk=study.pk)
    known = set(study.study_images.values_list("image_id", flat=True))
    new = [image for image in {image.pk: image for image in images}.values() if image.pk not in known]
    if not new:
        return 0
    last_block = study.study_images.aggregate(last=Max("block"))["last"]
    block = 0 if last_block is None else last_block + 1
    StudyImage.objects.bulk_create(
        [StudyImage(study=study, image=image, block=block) for image in new], batch_size=500
    )
    for reader_id in study.memberships.order_by("pk").values_list("reader_id", flat=True):
        _extend_reading_list(study, reader_id, {block: new})
    return len(new)


@transaction.atomic
def enrol_reader(*, study: Study, reader, expert_level: int, is_simulated: bool = False) -> list[Assignment]:
    """Let ``reader`` read the study: makes and returns the stored reading list, in an order of the reader's own.

    Raises StudyError for a level outside 1 to 3 or a reader who reads the study already.
    """
    _require_level(expert_level)
    study = Study.objects.select_for_update().get(pk=study.pk)
    if study.memberships.filter(reader=reader).exists():
        raise StudyError(f"{reader.get_username()} reads {study.name!r} already.")
    Membership.objects.create(study=study, reader=reader, expert_level=expert_level, is_simulated=is_simulated)
    blocks: dict[int, list[GeneratedImage]] = {}
    for entry in study.study_images.select_related("image"):
        blocks.setdefault(entry.block, []).append(entry.image)
    return _extend_reading_list(study, reader.pk, blocks)


def progress_of(studies: Sequence[Study], reader=None) -> dict[int, dict]:
    """By study key: total, done, ... of all readers or of one, in one query; studies without a list are left out."""
    assignments = Assignment.objects.filter(study__in=studies)
    if reader is not None:
        assignments = assignments.filter(reader=reader)
    return {row["study_id"]: row for row in assignments.progress_by("study_id")}


@transaction.atomic
def verify_level(*, person, expert_level: int, verified_by, specialty: str = "", note: str = "") -> Expertise:
    """Record that ``verified_by`` vouches for a person's level; it holds for what the person rates from now on.

    The memberships of open studies follow; ratings given before keep the level they were given under. Raises
    StudyError for a level outside 1 to 3.
    """
    _require_level(expert_level)
    Membership.objects.filter(reader=person, study__is_open=True, is_simulated=False).update(
        expert_level=expert_level
    )
    return Expertise.objects.create(
        person=person, expert_level=expert_level, verified_by=verified_by, specialty=specialty, note=note
    )
