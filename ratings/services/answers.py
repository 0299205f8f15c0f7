"""A reader's answers: given, changed, remarked on, taken back. They change only under a lock on the membership, so
that what two clients send at once takes turns."""

import uuid
from collections.abc import Iterable
from datetime import datetime

from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from ratings import answer_codes
from ratings.csv_schema import GRADES
from ratings.models import Answer, Assignment, Membership, Rating, RatingEvent, RatingQuerySet, Study
from ratings.services.errors import StaleRevision, StudyClosed, StudyError

_SEEN = frozenset({"shown_at", "first_input_at", "active_ms", "display"})  # what a client may tell of the showing
_ANSWER_FIELDS = tuple(field.name for field in Answer._meta.fields)


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


def record_event(rating: Rating, action: RatingEvent.Action, *, old_value: int | None, **client) -> None:
    """Write down what happened to ``rating``, with the whole answer as it stands now."""
    RatingEvent.objects.create(
        rating=rating,
        revision=rating.revision,
        action=action,
        state=rating.state,
        old_value=old_value,
        **{name: getattr(rating, name) for name in _ANSWER_FIELDS},
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
    if membership.study.frozen_at is None:
        Study.objects.filter(pk=membership.study_id).update(frozen_at=rating.submitted_at)


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
    record_event(rating, action, old_value=old_value, **client)
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
    record_event(rating, RatingEvent.Action.REMARK, old_value=rating.value, **client)
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
    record_event(rating, RatingEvent.Action.UNDO, old_value=rating.value, **client)
    return rating.assignment
