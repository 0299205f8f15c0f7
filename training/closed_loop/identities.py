"""Public ids, which a database draws at random and which decide what is drawn: order of reading, calibration images,
repeats. In a loop's scratch database the seed gives them, so that the same command has the same results."""

import uuid

from generation.models import GeneratedImage
from ratings.models import Study

_NAMESPACE = uuid.UUID("9f0c6b52-6f0e-4f0b-8a55-0d7f3c1f5a11")  # any: what matters is that it is always this one


def identify(row: GeneratedImage | Study, name: str) -> None:
    """Give a row the public id of a name that no other row of its table has; nothing happens where it has it."""
    public_id = uuid.uuid5(_NAMESPACE, name)
    if row.public_id != public_id:
        row.public_id = public_id
        row.save(update_fields=["public_id"])
