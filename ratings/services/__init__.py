"""What happens to studies and ratings: called alike by pages, API and commands.

Every function guards first, then writes in one transaction.
"""

from ratings.reading_list import reading_order
from ratings.services.answers import remark, submit_rating, undo
from ratings.services.errors import PlaceGivenAway, StaleRevision, StudyClosed, StudyError, UnknownDefects, VoidRating
from ratings.services.files import freeze_export, freeze_images, rerun_export
from ratings.services.gold import clear_gold, set_gold, training_images
from ratings.services.imports import import_ratings
from ratings.services.pools import FEWEST_OPEN, draw_places, release_places
from ratings.services.protocols import PROTOCOL_FIELDS, revise_protocol
from ratings.services.studies import (
    add_images,
    create_study,
    describe_study,
    enrol_reader,
    progress_of,
    verify_level,
)
from ratings.services.voiding import restore_rating, void_rating

__all__ = [
    "FEWEST_OPEN",
    "PROTOCOL_FIELDS",
    "PlaceGivenAway",
    "StaleRevision",
    "StudyClosed",
    "StudyError",
    "UnknownDefects",
    "VoidRating",
    "add_images",
    "clear_gold",
    "create_study",
    "describe_study",
    "draw_places",
    "enrol_reader",
    "freeze_export",
    "freeze_images",
    "import_ratings",
    "progress_of",
    "reading_order",
    "release_places",
    "remark",
    "rerun_export",
    "restore_rating",
    "revise_protocol",
    "set_gold",
    "submit_rating",
    "training_images",
    "undo",
    "verify_level",
    "void_rating",
]
