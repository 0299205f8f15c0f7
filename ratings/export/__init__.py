"""Ratings to files: the five columns that training reads, the tidy table for analysis, what all readers together say
of each image, and what the columns mean.

A file is a function of which ratings are chosen and of the newest event that counts; the database writes its cells
(docs/exports.md).
"""

from ratings.export.cells import formula_safe
from ratings.export.columns import RATINGS_COLUMNS, TIDY_COLUMNS
from ratings.export.files import FILE_NAMES
from ratings.export.pseudonyms import pseudonym

__all__ = [
    "FILE_NAMES",
    "RATINGS_COLUMNS",
    "TIDY_COLUMNS",
    "formula_safe",
    "pseudonym",
]
