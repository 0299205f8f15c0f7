"""Forms of studies, protocols, readers, exports, and the filters above lists."""

from ratings.forms.exports import ExportForm
from ratings.forms.filters import ExportFilter, RatingFilter, StudyFilter
from ratings.forms.images import ImageChoiceForm
from ratings.forms.studies import LEVEL_CHOICES, NewStudyForm, ReaderForm, people

__all__ = [
    "LEVEL_CHOICES",
    "ExportFilter",
    "ExportForm",
    "ImageChoiceForm",
    "NewStudyForm",
    "RatingFilter",
    "ReaderForm",
    "StudyFilter",
    "people",
]
