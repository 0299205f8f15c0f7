"""Ratings from files: rows that are checked one by one, pictures that are copied, anonymous readers.

Files are read twice, row by row, so that memory does not grow with them: once to check, once to store.
"""

from ratings.importing.pictures import Pictures
from ratings.importing.report import RowReport
from ratings.importing.rows import BadRow, ImportedRow, read_rows
from ratings.importing.showings import Showings
from ratings.importing.storing import Store

__all__ = ["BadRow", "ImportedRow", "Pictures", "RowReport", "Showings", "Store", "read_rows"]
