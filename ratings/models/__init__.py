"""Image -> rating -> CSV: studies, stored reading lists, one current rating and its append-only events."""

from ratings.models.certification import CalibrationImage, CalibrationPlan
from ratings.models.exports import Export, ExportQuerySet
from ratings.models.people import LEVEL_VALIDATORS, Expertise, ExpertiseQuerySet, Membership
from ratings.models.reading import (
    Answer,
    Assignment,
    AssignmentQuerySet,
    Rating,
    RatingEvent,
    RatingQuerySet,
    StudyImage,
    StudyImageQuerySet,
)
from ratings.models.studies import (
    NO_PROGRESS,
    Anchor,
    GoldGrade,
    Grade,
    Protocol,
    Study,
    StudyQuerySet,
    _standard_defects,  # noqa: F401  named by a migration
    _standard_scale,  # noqa: F401  named by a migration
)

__all__ = [
    "LEVEL_VALIDATORS",
    "NO_PROGRESS",
    "Anchor",
    "Answer",
    "Assignment",
    "AssignmentQuerySet",
    "CalibrationImage",
    "CalibrationPlan",
    "Expertise",
    "ExpertiseQuerySet",
    "Export",
    "ExportQuerySet",
    "GoldGrade",
    "Grade",
    "Membership",
    "Protocol",
    "Rating",
    "RatingEvent",
    "RatingQuerySet",
    "Study",
    "StudyImage",
    "StudyImageQuerySet",
    "StudyQuerySet",
]
