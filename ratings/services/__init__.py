"""What happens to studies and ratings: called alike by pages, API and commands.

Every function guards first, then writes in one transaction.
"""

from ratings.services.answers import remark, submit_rating, undo
from ratings.services.errors import StaleRevision, StudyClosed, StudyError
from ratings.services.files import freeze_export, import_ratings
from ratings.services.studies import (
    add_images,
    create_study,
    enrol_reader,
    progress_of,
    reading_order,
    verify_level,
)

__all__ = [
    "StaleRevision",
    "StudyClosed",
    "StudyError",
    "add_images",
    "create_study",
    "enrol_reader",
    "freeze_export",
    "import_ratings",
    "progress_of",
    "reading_order",
    "remark",
    "submit_rating",
    "undo",
    "verify_level",
]
