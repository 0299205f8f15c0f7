"""Open pools: images that only so many readers shall have, handed out as they are wanted and given back.

Which images: those closest to being done come first, then new ones in the study's drawn order. A study that ends
early, because its readers stop, then has as many images as possible with all of their ratings; an image that one
person rated says nothing about agreement. In which order a portion is read is each reader's own.

Who hands out or gives back holds the lock on the study; who answers holds the lock on the reader's membership. Where
both are needed the membership comes first.
"""

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from ratings.models import Assignment, Membership, Study, StudyImage
from ratings.services.errors import PlaceGivenAway, StudyClosed, StudyError
from ratings.services.lists import extend_list, next_position

FEWEST_OPEN = 10  # a list with fewer places is filled up
PORTION = 20  # to so many


def draw_places(*, study: Study, reader) -> int:
    """Fill the list of a reader of an open pool up to PORTION places where fewer than FEWEST_OPEN are open; returns
    how many places were added, hidden repeats included.

    Nothing is added to a list that is not short, while the reader's training round is open, where the study has no
    pool or nothing is left in it. No image ever gets more readers than its overlap target, however many draw at once.
    Raises StudyClosed, and Membership.DoesNotExist where the person does not read the study.
    """
    membership = Membership.objects.select_related("study").get(study=study, reader=reader)
    if not membership.study.is_open:
        raise StudyClosed(membership.study)
    has_more = study.study_images.with_room().not_given_to(reader).exists() or study.protocol.repeat_share
    if not has_more or not _missing(membership):
        return 0  # without taking turns with those for whom there is something
    return _draw(membership)


def _missing(membership: Membership) -> int:
    """How many places a short list lacks; 0 where it is long enough or begins with an open training round."""
    places = Assignment.objects.filter(study=membership.study, reader=membership.reader).open()
    kinds = list(places.order_by("position").values_list("kind", flat=True)[:FEWEST_OPEN])
    if len(kinds) == FEWEST_OPEN or Assignment.Kind.TRAINING in kinds:
        return 0
    return PORTION - len(kinds)


@transaction.atomic
def _draw(membership: Membership) -> int:
    study = Study.objects.select_for_update().get(pk=membership.study_id)
    missing = _missing(membership)  # another window of the reader may have drawn meanwhile
    if not missing:
        return 0
    free = study.study_images.with_room().not_given_to(membership.reader).select_related("image")
    entries = list(free.order_by("-num_readers", "pk")[:missing])
    draw = next_position(study, membership.reader_id)
    return len(extend_list(study, study.protocol, membership.reader_id, draw, entries))


@transaction.atomic
def release_places(*, study: Study, reader) -> int:
    """Give the places that a reader has not answered back to the pool; returns how many. The training round stays.

    The reader may draw again, and an answer that was on its way is still taken while there is room. Raises
    StudyError where the study has no open pool, and Membership.DoesNotExist where the person does not read it.
    """
    membership = Membership.objects.select_for_update(of=("self",)).get(study=study, reader=reader)
    locked = Study.objects.select_for_update().get(pk=study.pk)
    if locked.protocol.overlap_target is None:
        raise StudyError(
            f"{locked.name} has no open pool: every reader reads every image, and nothing is given back."
        )
    places = Assignment.objects.filter(study=locked, reader=membership.reader).open()
    places = list(places.exclude(kind=Assignment.Kind.TRAINING).values_list("pk", "image_id", "occurrence"))
    Assignment.objects.filter(pk__in=[pk for pk, _, _ in places]).update(released_at=timezone.now())
    first = [image_id for _, image_id, occurrence in places if occurrence == 1]
    locked.study_images.filter(image__in=first).update(num_readers=F("num_readers") - 1)
    return len(places)


def take_back(assignment: Assignment) -> None:
    """A place that was given back becomes its reader's again, who has just answered it. Call under a lock on the
    membership. Raises PlaceGivenAway where the image has all the readers it may have."""
    Study.objects.select_for_update().get(pk=assignment.study_id)
    if Assignment.objects.filter(pk=assignment.pk, released_at=None).exists():
        return  # the reader drew it again before the lock was had: it is counted already
    if assignment.occurrence == 1:
        entry = StudyImage.objects.get(study=assignment.study_id, image=assignment.image_id)
        if entry.max_readers is not None and entry.num_readers >= entry.max_readers:
            raise PlaceGivenAway
        entry.num_readers += 1
        entry.save(update_fields=["num_readers"])
    assignment.released_at = None
    assignment.save(update_fields=["released_at"])
