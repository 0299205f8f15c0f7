"""Studies, their images and readers. They change only under a lock on the study."""

import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import transaction
from django.db.models import Max

from generation.models import GeneratedImage
from ratings.csv_schema import EXPERT_LEVELS
from ratings.models import NO_PROGRESS, Anchor, Assignment, Expertise, Membership, Protocol, Study, StudyImage
from ratings.reader_images import have_full_depth
from ratings.reading_list import rank, reading_order
from ratings.services.errors import StudyError
from ratings.services.gold import (
    Block,
    calibration_of,
    has_been_trained,
    mixed_block,
    require_usable,
    training_images,
)
from ratings.services.lists import extend_list
from ratings.services.protocols import make_protocol


def _require_level(expert_level: int) -> None:
    if expert_level not in EXPERT_LEVELS:
        raise StudyError(f"expert_level is {expert_level!r}; it must be 1 (trainee), 2 (specialist) or 3 (senior).")


def _require_name(name: str) -> str:
    name = name.strip()
    if not name:
        raise StudyError("The study has no name. Give it one that its readers will recognise.")
    if Study.objects.filter(name=name).exists():
        raise StudyError(f"There is a study named {name!r} already. Choose another name.")
    return name


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
    protocol: Mapping[str, Any] | None = None,
    anchors: Mapping[int, GeneratedImage] | None = None,
) -> Study:
    """A study of ``images`` (block 0; none yet is allowed), read by ``readers``: pairs of person and level.

    protocol: any of services.PROTOCOL_FIELDS; the others have the model's defaults. anchors: image by grade.
    Without ``order_seed`` one is drawn; it is recorded either way. Raises StudyError for a name that is empty or
    taken, a level outside 1 to 3, a protocol that is none, an anchor among the images, and too few gold or real
    images to mix in.
    """
    study = Study.objects.create(
        name=_require_name(name),
        description=description,
        order_seed=secrets.randbelow(2**31) if order_seed is None else order_seed,
        is_simulated=is_simulated,
        created_by=created_by,
    )
    make_protocol(study, created_by=created_by, fields=protocol, anchors=anchors)
    add_images(study=study, images=images)
    study.refresh_from_db(fields=["has_full_depth"])
    for reader, expert_level in readers:
        enrol_reader(study=study, reader=reader, expert_level=expert_level)
    return study


@transaction.atomic
def describe_study(*, study: Study, **changes) -> Study:
    """Change a study's name, description or whether it is open. Raises StudyError for a name that is empty or taken,
    or that is to change after the first rating: exports name the study."""
    locked = Study.objects.select_for_update().get(pk=study.pk)
    if "name" in changes:
        changes["name"] = changes["name"].strip()
        if changes["name"] != locked.name:
            if locked.has_begun:
                raise StudyError(f"{locked.name} was rated: its name stands in exports and does not change any more.")
            _require_name(changes["name"])
    for name, value in changes.items():
        if name not in ("name", "description", "is_open"):
            raise TypeError(f"describe_study() knows nothing of {name}.")
        setattr(locked, name, value)
        setattr(study, name, value)
    locked.save(update_fields=list(changes))
    return study


@transaction.atomic
def add_images(
    *, study: Study, images: Iterable[GeneratedImage], calibrate_from: Iterable[GeneratedImage] | None = None
) -> int:
    """Put images into a new block behind every reader's list; places handed out before never move.

    By the shares of the protocol gold and real images are mixed in, and some of the others are set apart for
    calibration (services.gold), drawn from ``calibrate_from`` where not all of the images were chosen at random. In
    an open pool readers get them when their list runs short, and new ones in the
    order in which they are stored, which is drawn with the study's seed.

    Pictures of a study of full depth keep it only while every new image has it too (reader_images).

    Images that the study already has are left out. Returns how many were added, those mixed in included. Raises
    StudyError where too few can be mixed in, for anchors of the study, in whatever version of its protocol, and for
    images that a training round of the study showed. Who was taught with an image in another study does not get it.
    """
    study = Study.objects.select_for_update().get(pk=study.pk)
    known = set(study.study_images.values_list("image_id", flat=True))
    new = [image for image in {image.pk: image for image in images}.values() if image.pk not in known]
    if not new:
        return 0
    _require_no_anchors(study, new)
    _require_untaught(study, new)
    require_usable(new, study=study)
    last_block = study.study_images.aggregate(last=Max("block"))["last"]
    block = 0 if last_block is None else last_block + 1
    mixed = mixed_block(study, study.protocol, block, new)
    calibration = calibration_of(study, study.protocol, mixed, block, among=calibrate_from)
    entries = _stored_block(study, block, mixed, calibration)
    if block == 0 or study.has_full_depth:
        study.has_full_depth = have_full_depth(entry.image for entry in entries)
        study.save(update_fields=["has_full_depth"])
    if study.protocol.overlap_target is None:
        taught = _taught_in(study, block)
        for reader_id in study.memberships.order_by("pk").values_list("reader_id", flat=True):
            told = taught.get(reader_id, ())
            own = [entry for entry in entries if entry.image_id not in told]
            extend_list(study, study.protocol, reader_id, block, own)
    return len(entries)


def _taught_in(study: Study, block: int) -> dict[int, set[int]]:
    """By reader: keys of the block's images whose grade a training round of another study told the reader."""
    of_block = StudyImage.objects.filter(study=study, block=block).values("image")
    rows = Assignment.objects.in_training().filter(image__in=of_block, reader__memberships__study=study)
    taught = defaultdict(set)
    for reader_id, image_id in rows.order_by().values_list("reader_id", "image_id"):
        taught[reader_id].add(image_id)
    return taught


def _require_no_anchors(study: Study, images: Sequence[GeneratedImage]) -> None:
    anchors = Anchor.objects.filter(protocol__study=study, image__in=images)
    if names := sorted({str(key) for key in anchors.values_list("image__public_id", flat=True)}):
        raise StudyError(
            f"Anchors of the study are among the images: {', '.join(names)}. Who has an image at hand as an example "
            "judges it no more. Leave them out."
        )


def _require_untaught(study: Study, images: Sequence[GeneratedImage]) -> None:
    taught = study.assignments.in_training().filter(image__in=images)
    number = taught.values("image").distinct().count()
    if number:
        raise StudyError(
            f"{number} of the images were shown in the study's training round: its readers know their grade. Leave "
            "them out."
        )


def _stored_block(study: Study, block: int, mixed: Block, calibration: set[int]) -> list[StudyImage]:
    """The block's images with their roles, stored in an order that says nothing of what they are."""
    roles = {image.pk: StudyImage.Role.MAIN for image in mixed.main}
    roles |= dict.fromkeys(calibration, StudyImage.Role.CALIBRATION)
    roles |= {image.pk: StudyImage.Role.GOLD for image in mixed.gold}
    roles |= {image.pk: StudyImage.Role.REAL for image in mixed.real}
    by_key = {image.public_id: image for image in (*mixed.main, *mixed.gold, *mixed.real)}
    entries = [
        StudyImage(
            study=study,
            image=by_key[key],
            block=block,
            role=roles[by_key[key].pk],
            max_readers=study.protocol.overlap_target,
        )
        for key in reading_order(study.order_seed, 0, block, by_key)  # no reader has key 0
    ]
    return StudyImage.objects.bulk_create(entries, batch_size=500)


@transaction.atomic
def enrol_reader(*, study: Study, reader, expert_level: int, is_simulated: bool = False) -> list[Assignment]:
    """Let ``reader`` read the study: makes and returns the stored reading list, in an order of the reader's own.

    It begins with the training round, if the protocol has one and the reader never finished any. In an open pool
    nothing else is in it yet: draw_places fills it when the reader comes to read. Images whose grade a training round
    of another study told the reader are left out.

    Raises StudyError for a level outside 1 to 3 or a reader who reads the study already.
    """
    _require_level(expert_level)
    study = Study.objects.select_for_update().get(pk=study.pk)
    if study.memberships.filter(reader=reader).exists():
        raise StudyError(f"{reader.get_username()} reads {study.name!r} already.")
    Membership.objects.create(study=study, reader=reader, expert_level=expert_level, is_simulated=is_simulated)
    protocol = study.protocol
    places = _training_round(study, protocol, reader)
    if protocol.overlap_target is None:
        blocks: dict[int, list[StudyImage]] = {}
        for entry in study.study_images.not_given_to(reader).select_related("image"):
            blocks.setdefault(entry.block, []).append(entry)
        for block in sorted(blocks):
            places += extend_list(study, protocol, reader.pk, block, blocks[block])
    return places


def _training_round(study: Study, protocol: Protocol, reader) -> list[Assignment]:
    """Places 0, 1, ... of the list: images of known grade, in an order of the reader's own."""
    if not protocol.num_training_images or has_been_trained(reader):
        return []
    by_key = {image.public_id: image for image in training_images(study, protocol, reader)}
    order = sorted(by_key, key=lambda key: rank(study.order_seed, reader.pk, "training", key))
    places = [
        Assignment(study=study, reader=reader, image=by_key[key], position=position, kind=Assignment.Kind.TRAINING)
        for position, key in enumerate(order)
    ]
    return Assignment.objects.bulk_create(places)


def progress_of(studies: Sequence[Study], reader=None) -> dict[int, dict]:
    """By study key: total, done, ... of all readers or of one, in two queries; studies without a list are left out.

    ``left_in_pool`` says how much of ``total`` is not given to anybody yet: images of an open pool that the reader
    can still get while others do not take them, or all that its images still have room for.
    """
    assignments = Assignment.objects.filter(study__in=studies)
    entries = StudyImage.objects.filter(study__in=studies)
    if reader is not None:
        assignments = assignments.filter(reader=reader)
        room = entries.not_given_to(reader).with_room().count_by_study()
    else:
        room = entries.room_by_study()
    rows = {row["study_id"]: row for row in assignments.progress_by("study_id")}
    rows |= {key: {"study_id": key, **NO_PROGRESS} for key in room.keys() - rows.keys()}
    return {
        key: {**row, "total": row["total"] + room.get(key, 0), "left_in_pool": room.get(key, 0)}
        for key, row in rows.items()
    }


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
