"""A dataset whose images were all opened: every row checked before training starts. No torch here.

The CSV itself is read by medsyn.dataset_csv; here its images are opened too, and all bad rows are told together.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from generation.embedded_model import PHANTOM_STATEMENT
from medsyn.artifacts import file_sha256
from medsyn.dataset_csv import BadRow, DatasetError, Row, describe_bad_rows, names_a_side, read_rows
from medsyn.imaging import ImageReadError, MedicalImage, load

__all__ = [
    "BadRow",
    "DatasetError",
    "Row",
    "are_phantoms",
    "check_images",
    "hold_out",
    "load_dataset",
    "names_a_side",
    "open_row",
    "read_rows",
    "sort_out",
]
T = TypeVar("T")
_HOLD_OUT_STREAM = 11  # sets the choice of groups apart from other draws of a seed


def load_dataset(
    csv_path: Path,
    *,
    image_column: str = "path",
    caption_column: str = "Text",
    skip_bad_rows: bool = False,
    max_rows: int | None = None,
    seed: int = 0,
    num_threads: int = 4,
) -> tuple[list[Row], list[BadRow]]:
    """The usable rows in file order, their images opened and hashed, and the bad rows that were left out.

    Raises DatasetError with every bad row, unless ``skip_bad_rows``; in any case where the file itself is no
    dataset CSV or no row is left. ``max_rows`` draws that many of the well-formed rows by ``seed``; the images of
    the others are not opened.
    """
    rows, bad = read_rows(csv_path, image_column=image_column, caption_column=caption_column)
    if max_rows is not None and max_rows < len(rows):
        chosen = np.random.default_rng(seed).choice(len(rows), size=max_rows, replace=False)
        rows = [rows[index] for index in sorted(chosen)]
    rows, unreadable = check_images(rows, num_threads=num_threads)
    bad = sorted([*bad, *unreadable], key=lambda row: row.line)
    if bad and not skip_bad_rows:
        raise DatasetError(describe_bad_rows(csv_path, bad, "Correct them, or leave them out with --skip-bad-rows."))
    if not rows:
        raise DatasetError(describe_bad_rows(csv_path, bad, "No usable row is left."))
    return rows, bad


def check_images(rows: Sequence[Row], *, num_threads: int) -> tuple[list[Row], list[BadRow]]:
    """Open every image in parallel threads: the rows with their file's sha256, and those that cannot be read."""
    return sort_out(rows, _check_image, num_threads=num_threads, description="Checking images")


def sort_out(
    rows: Sequence[Row], look: Callable[[Row], T | BadRow], *, num_threads: int, description: str
) -> tuple[list[T], list[BadRow]]:
    """``look`` at every row in parallel threads: what it found, and the bad rows, both in row order."""
    good: list[T] = []
    bad: list[BadRow] = []
    with ThreadPoolExecutor(num_threads) as threads:
        looked_at = threads.map(look, rows)
        bar = tqdm(looked_at, total=len(rows), desc=description, unit="image", disable=None if rows else True)
        try:
            for outcome in bar:
                if isinstance(outcome, BadRow):
                    bad.append(outcome)
                else:
                    good.append(outcome)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)  # else leaving the block would open all the others
            raise
    return good, bad


def open_row(row: Row) -> tuple[Row, MedicalImage] | BadRow:
    """The row with its file's sha256, and the image; or why it cannot be read."""
    try:
        image = load(row.path, modality=row.prompt.kind.prefix)
        sha256 = file_sha256(row.path)
    except (ImageReadError, OSError) as error:
        return BadRow(row.line, str(error))
    return replace(row, image_sha256=sha256), image


def _check_image(row: Row) -> Row | BadRow:
    opened = open_row(row)
    return opened if isinstance(opened, BadRow) else opened[0]


def are_phantoms(rows: Sequence[Row]) -> bool:
    """Whether every image's file says that it is a procedural phantom."""
    return all(_is_phantom(row.path) for row in rows)


def _is_phantom(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get("Comment") == PHANTOM_STATEMENT
    except UnidentifiedImageError:  # DICOM, NIfTI
        return False


def hold_out(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and about ``share`` of them to measure on, split by group; at least one group for each.

    Rows without a group are grouped by their file's content, so that no image stands on both sides. With ``share`` 0
    nothing is held out. Raises ValueError where there is one group only.
    """
    if share == 0:
        return list(rows), []
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group or row.image_sha256, []).append(row)
    if len(groups) < 2:
        raise ValueError("All rows are of one group, so none can be held out. Give 0 as the share to hold out.")
    names = sorted(groups)
    held: set[str] = set()
    num_held = 0
    for index in np.random.default_rng([seed, _HOLD_OUT_STREAM]).permutation(len(names))[:-1]:
        if num_held >= share * len(rows):
            break
        held.add(names[index])
        num_held += len(groups[names[index]])
    is_held = [(row.group or row.image_sha256) in held for row in rows]
    return (
        [row for row, out in zip(rows, is_held, strict=True) if not out],
        [row for row, out in zip(rows, is_held, strict=True) if out],
    )
