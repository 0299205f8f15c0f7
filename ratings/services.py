"""What happens to studies and ratings: called alike by pages, API and commands.

Every function guards first, then writes in one transaction. A study's reading lists change only under a lock on
the study, a reader's ratings only under a lock on the membership: what two clients send at once takes turns.
"""

import hashlib
import secrets
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, Max, OuterRef
from django.utils import timezone

from generation.models import GeneratedImage
from medsyn.artifacts import file_sha256
from medsyn.modalities import canonical_modality
from ratings import answer_codes, export, importing
from ratings.csv_schema import EXPERT_LEVELS, GRADES, read_ratings_file
from ratings.models import (
    Assignment,
    Export,
    Membership,
    Rating,
    RatingEvent,
    RatingQuerySet,
    Study,
    StudyImage,
)

_SEEN = frozenset({"shown_at", "first_input_at", "active_ms", "display"})  # what a client may tell of the showing


class StudyError(ValueError):
    """What was asked does not fit the study; the text says why and what to do."""


class StudyClosed(StudyError):
    """The study takes no ratings any more."""

    def __init__(self, study: Study):
        super().__init__(f"The study {study.name!r} is closed: it takes no ratings. An administrator can open it.")


class StaleRevision(Exception):
    """The rating changed since the client last saw it; ``rating`` is how it stands now (None: never given)."""

    def __init__(self, rating: Rating | None):
        self.rating = rating
        super().__init__("This image was rated elsewhere in the meantime; that rating stands.")


# Studies and reading lists ----------------------------------------------------------------------------------


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


# Ratings ----------------------------------------------------------------------------------------------------


def _locked_membership(study_id: int, reader) -> Membership:
    """The reader's membership, locked until the transaction ends: a reader's saves and undos take turns."""
    membership = (
        Membership.objects.select_for_update(of=("self",))
        .select_related("study")
        .get(study_id=study_id, reader=reader)
    )
    if not membership.study.is_open:
        raise StudyClosed(membership.study)
    return membership


def _record(rating: Rating, action: RatingEvent.Action, *, old_value: int | None, **client) -> None:
    said = {"defects": rating.defects, "comment": rating.comment, "cannot_judge": rating.cannot_judge}
    RatingEvent.objects.create(
        rating=rating,
        revision=rating.revision,
        action=action,
        old_value=old_value,
        new_value=rating.value if rating.state == Rating.State.SUBMITTED else None,
        answer={name: what for name, what in said.items() if what},
        **client,
    )


def _submit(rating: Rating, membership: Membership) -> None:
    """Store ``rating`` as given now, under the level and the protocol that hold now."""
    rating.state = Rating.State.CANNOT_JUDGE if rating.value is None else Rating.State.SUBMITTED
    rating.revision += 1
    rating.expert_level, rating.is_simulated = membership.expert_level, membership.is_simulated
    rating.protocol_version = membership.study.protocol_version
    rating.submitted_at = timezone.now()
    rating.save()


def _known_rating(assignment: Assignment, client_uuid: uuid.UUID) -> Rating | None:
    """The rating of a place; its ``is_replay`` says whether ``client_uuid`` has reached it before."""
    seen_before = RatingEvent.objects.filter(rating=OuterRef("pk"), client_uuid=client_uuid)
    rating = Rating.objects.filter(assignment=assignment).annotate(is_replay=Exists(seen_before)).first()
    if rating is not None:
        rating.assignment = assignment  # spares whoever shows the rating a query
    return rating


def _require_own(assignment: Assignment, reader) -> None:
    if assignment.reader_id != reader.pk:
        raise PermissionError(f"Assignment {assignment.public_id} belongs to another reader.")


def _require_answer(value: int | None, cannot_judge: str) -> None:
    if cannot_judge and cannot_judge not in answer_codes.CANNOT_JUDGE_REASONS:
        known = ", ".join(answer_codes.CANNOT_JUDGE_REASONS)
        raise StudyError(f"The reason is {cannot_judge!r}; it must be one of {known}.")
    if cannot_judge and value is not None:
        raise StudyError("A rating and a reason why the image cannot be judged exclude each other.")
    if not cannot_judge and value not in GRADES:
        raise StudyError(f"The rating is {value!r}; it must be 1 (poor), 2 (acceptable) or 3 (excellent).")


@transaction.atomic
def submit_rating(
    *,
    assignment: Assignment,
    reader,
    client_uuid: uuid.UUID,
    value: int | None = None,
    cannot_judge: str = "",
    defects: Iterable[str] = (),
    comment: str = "",
    revision: int = 0,
    client_time: datetime | None = None,
    **seen,
) -> Rating:
    """Store a reader's answer to one place in the reading list: a grade, or why the image cannot be judged.

    value: 1 to 3, or None with ``cannot_judge``, a code of answer_codes.CANNOT_JUDGE_REASONS.
    defects: codes of answer_codes.DEFECTS.
    client_uuid: made once per submission by the client; sent again, it changes nothing and returns the stored row.
    revision: the rating's revision as the client knows it, 0 where it knows of none.
    client_time: when the reader answered, by the reader's clock.
    seen: shown_at and first_input_at by the same clock; active_ms, milliseconds the image was looked at; display.

    Raises StaleRevision where somebody was faster, StudyClosed, StudyError for an answer that is none, ValueError for
    unknown defects, and PermissionError where the assignment is another reader's.
    """
    if not seen.keys() <= _SEEN:
        raise TypeError(f"submit_rating() knows nothing of {', '.join(seen.keys() - _SEEN)}.")
    _require_own(assignment, reader)
    _require_answer(value, cannot_judge)
    defects = answer_codes.in_order(defects)
    membership = _locked_membership(assignment.study_id, reader)
    rating = _known_rating(assignment, client_uuid)
    if rating is not None and rating.is_replay:
        return rating
    if revision != (rating.revision if rating else 0):
        raise StaleRevision(rating)
    stood = rating is not None and rating.state in Rating.ANSWERED
    old_value = rating.value if stood else None
    rating = rating or Rating(assignment=assignment, revision=0)
    said = {"value": value, "cannot_judge": cannot_judge, "defects": defects, "comment": comment}
    for name, what in {**dict.fromkeys(_SEEN), "display": {}, **seen, **said}.items():
        setattr(rating, name, what)
    rating.answered_at = client_time
    _submit(rating, membership)
    action = RatingEvent.Action.CHANGE if stood else RatingEvent.Action.SUBMIT
    client = {"actor": reader, "client_uuid": client_uuid, "client_time": client_time}
    _record(rating, action, old_value=old_value, **client)
    return rating


@transaction.atomic
def remark(
    *,
    assignment: Assignment,
    reader,
    client_uuid: uuid.UUID,
    revision: int,
    defects: Iterable[str] = (),
    comment: str = "",
    client_time: datetime | None = None,
) -> Rating:
    """Replace the defects and the comment of an answer that stands; grade, times and order of undo stay.

    Replays, revisions and errors as for ``submit_rating``; StaleRevision also where no answer stands.
    """
    _require_own(assignment, reader)
    defects = answer_codes.in_order(defects)
    _locked_membership(assignment.study_id, reader)
    rating = _known_rating(assignment, client_uuid)
    if rating is not None and rating.is_replay:
        return rating
    if rating is None or revision != rating.revision or rating.state not in Rating.ANSWERED:
        raise StaleRevision(rating)
    rating.defects, rating.comment, rating.revision = defects, comment, rating.revision + 1
    rating.save(update_fields=["defects", "comment", "revision"])
    client = {"actor": reader, "client_uuid": client_uuid, "client_time": client_time}
    _record(rating, RatingEvent.Action.REMARK, old_value=rating.value, **client)
    return rating


def _to_take_back(own: RatingQuerySet, assignment_id: uuid.UUID | None, revision: int | None) -> Rating | None:
    """The answer that stands last, or that of the named place if it has the revision the client knows."""
    if assignment_id is None:
        return own.answered().order_by("-submitted_at", "-pk").first()
    rating = own.filter(assignment__public_id=assignment_id).first()
    if rating is None or rating.state not in Rating.ANSWERED or revision != rating.revision:
        raise StaleRevision(rating)
    return rating


@transaction.atomic
def undo(
    *,
    study: Study,
    reader,
    client_uuid: uuid.UUID,
    assignment: uuid.UUID | None = None,
    revision: int | None = None,
    client_time: datetime | None = None,
) -> Assignment | None:
    """Take back the reader's last answer that stands; called again, the one before it.

    With ``assignment`` (its public id) and ``revision``, that answer and no other is taken back: what a page means
    that still has answers of its own to send, while another window rates too.

    Returns the assignment, whose ``rating`` carries the raised revision, or None where nothing is left to take
    back. The same ``client_uuid`` sent again returns the same assignment and takes back nothing more. Raises
    StudyClosed, StaleRevision where the named answer changed or does not stand, and Membership.DoesNotExist where
    the person does not read the study.
    """
    _locked_membership(study.pk, reader)
    own = Rating.objects.filter(assignment__study=study, assignment__reader=reader).select_related(
        "assignment__image__prompt"
    )
    undone = RatingEvent.objects.filter(
        rating=OuterRef("pk"), client_uuid=client_uuid, action=RatingEvent.Action.UNDO
    )
    replayed = own.filter(Exists(undone)).first()
    if replayed is not None:
        return replayed.assignment
    rating = _to_take_back(own, assignment, revision)
    if rating is None:
        return None
    rating.state, rating.revision = Rating.State.WITHDRAWN, rating.revision + 1
    rating.save(update_fields=["state", "revision"])
    client = {"actor": reader, "client_uuid": client_uuid, "client_time": client_time}
    _record(rating, RatingEvent.Action.UNDO, old_value=rating.value, **client)
    return rating.assignment


# Export -----------------------------------------------------------------------------------------------------


def freeze_export(
    *,
    study: Study | None = None,
    modality: str = "",
    include_simulated: bool | None = None,
    output: Path | None = None,
    absolute_paths: bool = False,
    created_by=None,
) -> Export:
    """Write the ratings that stand now to a CSV, with the tidy table and the data dictionary beside it; record it.

    study: one study, or None for all. modality: one of medsyn.modalities (aliases too), or "" for all.
    include_simulated: None takes ratings of simulated experts only where ``study`` is a simulated one.
    output: the CSV's path, or a folder that gets ratings.csv; None: <artifact root>/exports/<time>-<number>/.
    Image paths are relative to the CSV's folder unless ``absolute_paths``.

    Raises StudyError where no rating is left to write, UnknownModality, OSError (nothing half-written stays).
    """
    modality = canonical_modality(modality) if modality else ""
    if include_simulated is None:
        include_simulated = study is not None and study.is_simulated
    chosen = {"study": study, "modality": modality}
    ratings = Rating.objects.exportable(**chosen, include_simulated=include_simulated)
    _require_ratings(ratings, Rating.objects.exportable(**chosen))
    has_simulated = ratings.filter(is_simulated=True).exists()
    ratings = Rating.objects.exportable(**chosen, include_simulated=include_simulated, include_unjudged=True)
    filters = {
        "study": study.name if study else None,
        "modality": modality or None,
        "include_simulated": include_simulated,
        "absolute_paths": absolute_paths,
    }
    if output is None:
        folder = settings.ARTIFACT_ROOT / "exports" / f"{timezone.now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        row_count = export.write_folder(folder, ratings, absolute_paths=absolute_paths, filters=filters)
        path, file = folder / "ratings.csv", f"exports/{folder.name}/ratings.csv"
    else:
        path = (output / "ratings.csv" if output.is_dir() else output).absolute()
        row_count, file = export.write_files(path, ratings, absolute_paths=absolute_paths), str(path)
    return Export.objects.create(
        study=study,
        file=file,
        sha256=file_sha256(path),
        row_count=row_count,
        filters=filters,
        has_simulated=has_simulated,
        created_by=created_by,
    )


def _require_ratings(ratings: RatingQuerySet, with_simulated: RatingQuerySet) -> None:
    if ratings.exists():
        return
    left_out = with_simulated.count()
    if left_out:
        raise StudyError(
            f"No ratings to export: the {left_out} that match come from simulated experts. "
            "Include them expressly (--include-simulated) if they are what you want."
        )
    raise StudyError("No ratings to export: none match. Choose another study or modality, or rate images first.")


# Import -----------------------------------------------------------------------------------------------------


def import_ratings(
    *, path: Path, study_name: str, is_simulated: bool = False, is_phantom: bool = False, created_by=None
) -> Study:
    """Store a ratings CSV and copies of its images as a new study.

    The whole file is checked first; RatingsCSVError lists every bad row with its line (a missing or unreadable
    image included), and then nothing is stored. The file names no readers: the n-th rating of an image at a level
    goes to the n-th anonymous reader of that level, an account that nobody can sign in to. An image whose bytes and
    prompt are known already is not stored twice and keeps its provenance. ``is_phantom`` marks new images as
    procedural phantoms, ``is_simulated`` the ratings as given by simulated experts.

    Raises FileNotFoundError, RatingsCSVError, or StudyError for a name that is taken or a file without rows.
    """
    if Study.objects.filter(name=study_name.strip()).exists():
        raise StudyError(f"There is a study named {study_name!r} already. Choose another name.")
    pictures = importing.Pictures(path.parent)
    rows = read_ratings_file(path, check=pictures.check)
    if not rows:
        raise StudyError(f"{path} holds no ratings: there is nothing to import.")
    with pictures.copied(), transaction.atomic():
        images = [pictures.image_of(row, is_phantom=is_phantom) for row in rows]
        study = create_study(name=study_name, images=images, is_simulated=is_simulated, created_by=created_by)
        importing.store(study, list(zip(rows, images, strict=True)), is_simulated=is_simulated)
    return study
