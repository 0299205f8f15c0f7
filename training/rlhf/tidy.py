"""Who gave each rating of a ratings CSV, and which images belong together: from the tidy table beside it.

The table is used only where it belongs to the CSV: its trainable rows must be the CSV's rows, in the same order, in
all five columns. Where it does not, the raters of one expertise level count as one rater, and the log says why.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ratings.csv_schema import RatingRow, RatingsCSVError, TidyRow, read_tidy_file, tidy_path

logger = logging.getLogger(__name__)
TIDY_FILE, EXPERT_LEVELS, GIVEN = "tidy file", "expert levels", "given"  # where raters are known from
_CALIBRATION = "calibration"


@dataclass(frozen=True)
class Tidy:
    """The tidy table of a ratings CSV."""

    path: Path
    rows: tuple[TidyRow, ...]  # of each rating of the CSV, in its order
    left_out: dict[str, int]  # by role, rows of the table that the export kept out of the CSV
    calibration_images: frozenset[str]  # sha256 of images that some reader rated for calibration


def find_tidy(ratings_file: Path, rows: list[RatingRow]) -> Tidy | None:
    """The tidy table that belongs to ``rows``, all of ``ratings_file``; None where there is none.

    Raises RatingsCSVError with the lines of ratings that the table knows as a repeat, calibration, a real image or
    training round: they must not train anything.
    """
    path = tidy_path(ratings_file)
    try:
        table = read_tidy_file(path)
    except FileNotFoundError:
        logger.info("%s has no %s beside it: raters of one expertise level count as one.", ratings_file, path.name)
        return None
    except RatingsCSVError as error:
        logger.warning("%s\nIt is not used: raters of one expertise level count as one.", error)
        return None
    trainable = [row for row in table if row.is_trainable]
    if [row.rating for row in trainable] != rows:
        _refuse_untrainable(ratings_file, rows, table)
        logger.warning(
            "%s does not hold the ratings of %s (its trainable rows are not those of the CSV, in the same order). "
            "It is not used: raters of one expertise level count as one. Export both files together.",
            path,
            ratings_file.name,
        )
        return None
    return Tidy(
        path=path,
        rows=tuple(trainable),
        left_out=dict(Counter(_reason(row) for row in table if not row.is_trainable)),
        calibration_images=frozenset(row.image_sha256 for row in table if row.role == _CALIBRATION),
    )


def _reason(row: TidyRow) -> str:
    """Why a row is not in the CSV."""
    return "cannot_judge" if row.rating is None else row.role


def _refuse_untrainable(ratings_file: Path, rows: list[RatingRow], table: list[TidyRow]) -> None:
    """Raise where the CSV holds a rating more often than the table has it as trainable, and has it otherwise."""
    allowed = Counter(row.rating for row in table if row.is_trainable)
    other = {row.rating: row.role for row in table if row.rating is not None and not row.is_trainable}
    faults = []
    for row in rows:
        if allowed[row] > 0:
            allowed[row] -= 1
        elif row in other:
            faults.append(
                f"line {row.line}: {row.image_path} was rated as {other[row]} (line of "
                f"{tidy_path(ratings_file).name}), which nothing may learn from. Take the line out, or export again"
            )
    if faults:
        raise RatingsCSVError(str(ratings_file), faults)
