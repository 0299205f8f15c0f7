"""Pages of studies and ratings. Readers see their own studies and the rating page; the rest is for those who run the
study, and does not exist for others."""

from ratings.views.agreement import StudyAgreement, StudyImageGrades, StudyTable
from ratings.views.data import RatingDetail, RatingList, RatingRestore, RatingVoid
from ratings.views.exports import ExportFile, ExportList, ExportRerun
from ratings.views.images import GoldList, ImageGold, StudyImages, StudyImagesAdd
from ratings.views.paging import ordering, paged
from ratings.views.protocols import StudyProtocol
from ratings.views.rating import Rate
from ratings.views.studies import (
    StudyCreate,
    StudyDetail,
    StudyList,
    StudyPlaces,
    StudyPlanned,
    StudyReaders,
    StudyState,
)

__all__ = [
    "ExportFile",
    "ExportList",
    "ExportRerun",
    "GoldList",
    "ImageGold",
    "Rate",
    "RatingDetail",
    "RatingList",
    "RatingRestore",
    "RatingVoid",
    "StudyAgreement",
    "StudyCreate",
    "StudyDetail",
    "StudyImageGrades",
    "StudyImages",
    "StudyImagesAdd",
    "StudyList",
    "StudyPlaces",
    "StudyPlanned",
    "StudyProtocol",
    "StudyReaders",
    "StudyState",
    "StudyTable",
    "ordering",
    "paged",
]
