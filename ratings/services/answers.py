"""A reader's answers: given, changed, remarked on, taken back. They change only under a lock on the membership, so
that what two clients send at once takes turns."""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime

from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from ratings import answer_codes
from ratings.csv_schema import GRADES
from ratings.models import Answer, Assignment, Membership, Rating, RatingEvent, RatingQuerySet, Study
from ratings.services.errors import StaleRevision, StudyClosed, StudyError, UnknownDefects, VoidRating
from ratings.services.pools import take_back
from ratings.services.protocols import known_defects

_SEEN = frozenset({"shown_at", "first_input_at", "active_ms", "display"})  # what a client may tell of the showing
_SUBMITTING = (RatingEvent.Action.SUBMIT, RatingEvent.Action.CHANGE)
_ANSWER_FIELDS = tuple(field.name for field in Answer._meta.fields)


def _locked_membership(reader, **where) -> Membership:
    """The reader's membership, locked until the transaction ends: a reader's saves and undos take turns."""
    membership = (
        Membership.objects.select_for_update(of=("self",)).select_related("study").get(reader=reader, **where)
    )
    if not membership.study.is_open:
        raise StudyClosed(membership.study)
    return membership


def _locked_place(
    assignment: Assignment | uuid.UUID, reader, client_uuid: uuid.UUID, revision: int, actions: Sequence[str]
) -> tuple[Membership, Assignment, bool]:
    """The place and its rating as they stand under the lock on the reader's membership, which comes with them; and
    whether ``client_uuid`` has done one of ``actions`` there before. Two queries, and a third for a replay of a first
    answer."""
    own = {"public_id": getattr(assignment, "public_id", assignment), "reader": reader}
    try:
        membership = _locked_membership(reader, **{f"study__assignments__{name}": what for name, what in own.items()})
    except Membership.DoesNotExist:
        raise Assignment.DoesNotExist(f"{reader} has no place {own['public_id']}.") from None
    places = Assignment.objects.select_related("rating")
    done = RatingEvent.objects.filter(client_uuid=client_uuid, action__in=actions)
    if revision:
        places = places.annotate(is_replay=Exists(done.filter(rating=OuterRef("rating"))))
    place = places.get(**own)
    place.study, place.reader = membership.study, reader  # spares whoever looks a query
    # A first answer finds no rating and so no replay: Exists would cost it a tenth of the whole save.
    if revision or not hasattr(place, "rating"):
        return membership, place, getattr(place, "is_replay", False)
    return membership, place, done.filter(rating=place.rating).exists()


def record_event(rating: Rating, action: RatingEvent.Action, *, old_value: int | None, **client) -> None:
    """Write down what happened to ``rating``, with the whole answer as it stands now. Raises StudyError where its
    ``client_uuid`` has done something else to the rating before."""
    try:
        RatingEvent.objects.create(
            rating=rating,
            revision=rating.revision,
            action=action,
            state=rating.state,
            old_value=old_value,
            **{name: getattr(rating, name) for name in _ANSWER_FIELDS},
            **client,
        )
    except IntegrityError as error:
        # The lock on the membership leaves one reason: no two events can have raised the same revision.
        raise StudyError(
            f"client_uuid {client['client_uuid']} was sent with another request about this image. Make a new one for "
            "every request."
        ) from error


def _hold_protocol(membership: Membership, place: Assignment) -> None:
    """The first rating under a protocol freezes it, and takes turns with whoever revises it. What readers say in
    their training round freezes nothing."""
    if membership.study.frozen_at is None and place.kind != Assignment.Kind.TRAINING:
        membership.study = Study.objects.select_for_update().get(pk=membership.study_id)


def _require_changeable(rating: Rating | None, revision: int) -> None:
    if rating is not None and rating.state == Rating.State.VOID:
        raise VoidRating(rating)
    if revision != (rating.revision if rating else 0):
        raise StaleRevision(rating)


def _in_order(defects: Iterable[str], study: Study) -> list[str]:
    """As the study's protocols have them; asked for only where there are any."""
    defects = list(defects)
    try:
        return answer_codes.in_order(defects, known_defects(study)) if defects else []
    except ValueError as error:
        raise UnknownDefects(str(error)) from error


def _submit(rating: Rating, membership: Membership) -> None:
    """Store ``rating`` as given now, under the level and the protocol that hold now."""
    rating.state = Rating.State.CANNOT_JUDGE if rating.value is None else Rating.State.SUBMITTED
    rating.revision += 1
    rating.expert_level, rating.is_simulated = membership.expert_level, membership.is_simulated
    rating.protocol_version = membership.study.protocol_version
    rating.submitted_at = timezone.now()
    rating.save()
    if membership.study.frozen_at is None and rating.assignment.kind != Assignment.Kind.TRAINING:
        Study.objects.filter(pk=membership.study_id).update(frozen_at=rating.submitted_at)


def _require_own(assignment: Assignment | uuid.UUID, reader) -> None:
    if isinstance(assignment, Assignment) and assignment.reader_id != reader.pk:
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
    assignment: Assignment | uuid.UUID,
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

    assignment: the place, or its public id, which spares a query.
    value: 1 to 3, or None with ``cannot_judge``, a code of answer_codes.CANNOT_JUDGE_REASONS.
    defects: codes of the study's protocol, of any version.
    client_uuid: made once per submission by the client; sent again, it changes nothing and returns the stored row.
    revision: the rating's revision as the client knows it, 0 where it knows of none.
    client_time: when the reader answered, by the reader's clock.
    seen: shown_at and first_input_at by the same clock; active_ms, milliseconds the image was looked at; display.

    Raises StaleRevision where somebody was faster, VoidRating, StudyClosed, PlaceGivenAway for a place that was given
    back to the pool and has no room left, StudyError for an answer that is none or names unknown defects,
    PermissionError where the assignment is another reader's, and Assignment.DoesNotExist for a
    public id that is none of the reader's.
    """
    if not seen.keys() <= _SEEN:
        raise TypeError(f"submit_rating() knows nothing of {', '.join(seen.keys() - _SEEN)}.")
    _require_own(assignment, reader)
    _require_answer(value, cannot_judge)
    membership, place, is_replay = _locked_place(assignment, reader, client_uuid, revision, _SUBMITTING)
    rating = getattr(place, "rating", None)
    if is_replay:
        return rating
    _require_changeable(rating, revision)
    defects = _in_order(defects, place.study)
    _hold_protocol(membership, place)
    if place.released_at is not None:
        take_back(place)
    stood = rating is not None and rating.state in Rating.ANSWERED
    old_value = rating.value if stood else None
    rating = rating or Rating(assignment=place, revision=0)
    said = {"value": value, "cannot_judge": cannot_judge, "defects": defects, "comment": comment}
    for name, what in {**dict.fromkeys(_SEEN), "display": {}, **seen, **said}.items():
        setattr(rating, name, what)
    rating.answered_at = client_time
    _submit(rating, membership)
    action = RatingEvent.Action.CHANGE if stood else RatingEvent.Action.SUBMIT
    client = {"actor": reader, "client_uuid": client_uuid, "client_time": client_time}
    record_event(rating, action, old_value=old_value, **client)
    return rating


@transaction.atomic
def remark(
    *,
    assignment: Assignment | uuid.UUID,
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
    remarking = (RatingEvent.Action.REMARK,)
    _, place, is_replay = _locked_place(assignment, reader, client_uuid, revision, remarking)
    rating = getattr(place, "rating", None)
    if is_replay:
        return rating
    _require_changeable(rating, revision)
    if rating is None or rating.state not in Rating.ANSWERED:
        raise StaleRevision(rating)
    defects = _in_order(defects, place.study)
    rating.defects, rating.comment, rating.revision = defects, comment, rating.revision + 1
    rating.save(update_fields=["defects", "comment", "revision"])
    client = {"actor": reader, "client_uuid": client_uuid, "client_time": client_time}
    record_event(rating, RatingEvent.Action.REMARK, old_value=rating.value, **client)
    return rating


def _to_take_back(own: RatingQuerySet, assignment_id: uuid.UUID | None, revision: int | None) -> Rating | None:
    """The answer that stands last, or that of the named place if it has the revision the client knows."""
    if assignment_id is None:
        return own.answered().order_by("-submitted_at", "-pk").first()
    rating = own.filter(assignment__public_id=assignment_id).first()
    if rating is not None:
        _require_changeable(rating, revision)
    if rating is None or rating.state not in Rating.ANSWERED:
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
    _locked_membership(reader, study=study)
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
    record_event(rating, RatingEvent.Action.UNDO, old_value=rating.value, **client)
    return rating.assignment
