"""Ratings that do not count: declared void with a reason, and counted again. Nothing is deleted."""

import uuid

from django.db import transaction

from ratings.models import Membership, Rating, RatingEvent
from ratings.services.answers import record_event
from ratings.services.errors import StudyError


def _locked(rating: Rating) -> Rating:
    """The rating as it stands while its reader cannot answer."""
    place = rating.assignment
    members = Membership.objects.select_for_update(of=("self",))
    list(members.filter(study=place.study_id, reader=place.reader_id))  # evaluated: that is what locks
    return Rating.objects.select_related("assignment").get(pk=rating.pk)


def _require_reason(reason: str) -> str:
    if not reason.strip():
        raise StudyError("Say why (reason): it is kept with the rating.")
    return reason.strip()


@transaction.atomic
def void_rating(*, rating: Rating, actor, reason: str) -> Rating:
    """Declare a rating void: it counts in no figure and no export, and its reader cannot change it any more.

    Its image does not become free for another reader. Raises StudyError without a reason, and for a rating that is
    void already or was taken back. Who may do this is for the caller to check.
    """
    reason = _require_reason(reason)
    rating = _locked(rating)
    if rating.state not in Rating.ANSWERED:
        raise StudyError(f"The rating is {rating.get_state_display().lower()}: there is no answer to declare void.")
    return _changed(rating, Rating.State.VOID, RatingEvent.Action.VOID, actor, reason)


@transaction.atomic
def restore_rating(*, rating: Rating, actor, reason: str) -> Rating:
    """Let a void rating count again, as it stood before. Raises StudyError without a reason or where it is not
    void."""
    reason = _require_reason(reason)
    rating = _locked(rating)
    if rating.state != Rating.State.VOID:
        raise StudyError("The rating is not void: it counts as it is.")
    before = rating.events.get(revision=rating.revision - 1)  # nothing follows on a void rating but its return
    return _changed(rating, before.state, RatingEvent.Action.RESTORE, actor, reason)


def _changed(rating: Rating, state: str, action: RatingEvent.Action, actor, reason: str) -> Rating:
    old_value = rating.value if rating.state == Rating.State.SUBMITTED else None
    rating.state, rating.revision = state, rating.revision + 1
    rating.save(update_fields=["state", "revision"])
    record_event(rating, action, old_value=old_value, actor=actor, client_uuid=uuid.uuid4(), reason=reason)
    return rating
