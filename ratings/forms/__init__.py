"""Forms of studies, protocols, readers, exports, and the filters above lists."""

from ratings.forms.answers import ReasonForm
from ratings.forms.exports import ExportForm
from ratings.forms.filters import ExportFilter, RatingFilter, StudyFilter, StudyImageFilter
from ratings.forms.images import GoldForm, GoldImagesForm, ImageChoiceForm
from ratings.forms.protocol import DEFECT_KEYS, RevisionForm
from ratings.forms.studies import LEVEL_CHOICES, NewStudyForm, PlacesForm, ReaderForm, level_of, people

__all__ = [
    "DEFECT_KEYS",
    "LEVEL_CHOICES",
    "ExportFilter",
    "ExportForm",
    "GoldForm",
    "GoldImagesForm",
    "ImageChoiceForm",
    "NewStudyForm",
    "PlacesForm",
    "RatingFilter",
    "ReaderForm",
    "ReasonForm",
    "RevisionForm",
    "StudyFilter",
    "StudyImageFilter",
    "level_of",
    "people",
]
