"""Pages of studies and ratings. Readers see their own studies and the rating page; the rest is for those who run the
study, and does not exist for others."""

from ratings.views.agreement import StudyAgreement, StudyImageGrades, StudyTable
from ratings.views.data import RatingList
from ratings.views.exports import ExportFile, ExportList
from ratings.views.paging import ordering, paged
from ratings.views.rating import Rate
from ratings.views.studies import StudyCreate, StudyDetail, StudyImages, StudyList, StudyReaders, StudyState

__all__ = [
    "ExportFile",
    "ExportList",
    "Rate",
    "RatingList",
    "StudyAgreement",
    "StudyCreate",
    "StudyDetail",
    "StudyImageGrades",
    "StudyImages",
    "StudyList",
    "StudyReaders",
    "StudyState",
    "StudyTable",
    "ordering",
    "paged",
]
