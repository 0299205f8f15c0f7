"""Reading lists in the database: what ratings.reading_list plans becomes places. Call under a lock on the study."""

from collections.abc import Sequence

from django.db.models import F, Max

from ratings.models import Assignment, Protocol, Study, StudyImage
from ratings.reading_list import extension

_BATCH_ROWS = 500


def next_position(study: Study, reader_id: int) -> int:
    """Behind everything that the reader was ever given, places given back included."""
    last = Assignment.objects.filter(study=study, reader_id=reader_id).aggregate(last=Max("position"))["last"]
    return 0 if last is None else last + 1


def _given(study: Study, reader_id: int) -> dict:
    """What ``extension`` must know of a list to repeat images of it: its length, what was shown twice, what only
    once and where. The training round and places given back are no part of it."""
    places = Assignment.objects.filter(study=study, reader_id=reader_id, released_at=None)
    places = places.exclude(kind=Assignment.Kind.TRAINING).order_by("position")
    keys = list(places.values_list("image__public_id", "occurrence"))
    repeated = {key for key, occurrence in keys if occurrence > 1}
    return {
        "begins_at": len(keys),
        "unrepeated": {key: place for place, (key, _) in enumerate(keys) if key not in repeated},
        "num_repeated": len(repeated),
    }


def extend_list(
    study: Study, protocol: Protocol, reader_id: int, draw: int, entries: Sequence[StudyImage]
) -> list[Assignment]:
    """Put ``entries`` (with their images) behind a reader's list, in an order of the reader's own with hidden repeats
    among them; each entry's number of readers rises by one.

    draw: a number that the order is drawn with, another one each time. A place has the block of its image, second
    showings too. Places that the reader gave back before are taken up again, at their new position.
    """
    by_key = {entry.image.public_id: entry for entry in entries}
    showings = extension(
        order_seed=study.order_seed,
        reader_key=reader_id,
        block=draw,
        kinds={key: entry.role for key, entry in by_key.items()},
        repeat_share=protocol.repeat_share,
        repeat_distance=protocol.repeat_distance,
        **(_given(study, reader_id) if protocol.repeat_share else {}),
    )
    if not showings:
        return []
    places_of = {key: (entry.image_id, entry.block) for key, entry in by_key.items()}
    earlier = [showing.image for showing in showings if showing.image not in by_key]
    if earlier:
        rows = study.study_images.filter(image__public_id__in=earlier)
        places_of |= {key: of for key, *of in rows.values_list("image__public_id", "image_id", "block")}
    begins_at = next_position(study, reader_id)
    places = [
        Assignment(
            study=study,
            reader_id=reader_id,
            image_id=places_of[showing.image][0],
            occurrence=showing.occurrence,
            position=position,
            block=places_of[showing.image][1],
            kind=showing.kind,
        )
        for position, showing in enumerate(showings, start=begins_at)
    ]
    _store(study, reader_id, places)
    keys = [entry.pk for entry in entries]
    for begin in range(0, len(keys), _BATCH_ROWS):
        StudyImage.objects.filter(pk__in=keys[begin : begin + _BATCH_ROWS]).update(num_readers=F("num_readers") + 1)
    return places


def _store(study: Study, reader_id: int, places: list[Assignment]) -> None:
    """New rows; a place that was given back has a row already, which moves to where the list goes on."""
    back = Assignment.objects.filter(study=study, reader_id=reader_id, released_at__isnull=False)
    known = {(row.image_id, row.occurrence): row for row in back}
    new = []
    for place in places:
        row = known.get((place.image_id, place.occurrence))
        if row is None:
            new.append(place)
            continue
        row.position, row.block, row.kind, row.released_at = place.position, place.block, place.kind, None
        row.save(update_fields=["position", "block", "kind", "released_at"])
    Assignment.objects.bulk_create(new, batch_size=_BATCH_ROWS)
