"""Ratings as a table of images by readers, and the few distinct rows that all figures are sums over."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

NUM_GRADES = 3


@dataclass(frozen=True)
class RatingTable:
    """N images by J readers, one rating or none in each cell."""

    grades: np.ndarray  # (N, J) integers, 1 to num_grades; 0: not rated
    readers: tuple[str, ...]  # (J,) names of the columns
    images: tuple[str, ...]  # (N,) names of the rows
    num_grades: int = NUM_GRADES

    def __post_init__(self):
        if self.grades.shape != (len(self.images), len(self.readers)):
            raise ValueError(
                f"grades are {self.grades.shape}, names those of {len(self.images)} images and "
                f"{len(self.readers)} readers: give one name per row and per column."
            )
        wrong = np.argwhere((self.grades < 0) | (self.grades > self.num_grades))
        if len(wrong):
            row, column = wrong[0]
            raise ValueError(
                f"Image {self.images[row]}, reader {self.readers[column]}: grade {self.grades[row, column]} is not "
                f"one of 1 to {self.num_grades} (0: not rated)."
            )

    @classmethod
    def from_ratings(
        cls, images: Sequence, readers: Sequence, grades: Sequence[int], *, num_grades: int = NUM_GRADES
    ) -> "RatingTable":
        """From one entry per rating (R,): image, reader, grade 1 to Q. Rows and columns are in the order of the ids.

        Raises ValueError where a reader rated an image twice: repeats belong to `readers.intra_reader`.
        """
        image_names, row = np.unique(np.asarray(images), return_inverse=True)
        reader_names, column = np.unique(np.asarray(readers), return_inverse=True)
        table = np.zeros((len(image_names), len(reader_names)), dtype=np.int16)
        given = np.asarray(grades, dtype=np.int64)
        if given.size and given.min() < 1:
            raise ValueError(f"Rating {int(given.argmin())} has grade {given.min()}; grades are 1 to {num_grades}.")
        cell, times = np.unique(row * max(1, len(reader_names)) + column, return_counts=True)
        if len(cell) and times.max() > 1:
            twice = divmod(int(cell[times.argmax()]), len(reader_names))
            raise ValueError(
                f"Reader {reader_names[twice[1]]} rated image {image_names[twice[0]]} {times.max()} times: keep the "
                "first rating here and give repeats to intra_reader."
            )
        table[row, column] = given
        return cls(table, tuple(map(str, reader_names)), tuple(map(str, image_names)), num_grades)

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, *, num_grades: int = NUM_GRADES) -> "RatingTable":
        """From (N, J) numbers with NaN or 0 where there is no rating; readers and images are named 0, 1, 2, ..."""
        filled = np.nan_to_num(np.asarray(matrix, dtype=float), nan=0.0)
        if (filled != np.round(filled)).any():
            raise ValueError("Grades are whole numbers; round or recode them first.")
        rows, columns = filled.shape
        return cls(filled.astype(np.int16), tuple(map(str, range(columns))), tuple(map(str, range(rows))), num_grades)

    def of_readers(self, columns: Sequence[int]) -> "RatingTable":
        """The table of some of its readers, by position."""
        chosen = list(columns)
        return RatingTable(
            self.grades[:, chosen], tuple(self.readers[i] for i in chosen), self.images, self.num_grades
        )

    @property
    def n_ratings(self) -> int:
        return int((self.grades > 0).sum())

    @cached_property
    def grade_counts(self) -> np.ndarray:
        """(N, Q) how many readers gave each image each grade."""
        return np.stack([(self.grades == grade).sum(1) for grade in range(1, self.num_grades + 1)], 1)

    @cached_property
    def profiles(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct rows (K, Q) of ``grade_counts`` and how many images (K,) have each; rated images only."""
        rated = self.grade_counts[self.grade_counts.sum(1) > 0]
        return _distinct(rated)

    @cached_property
    def patterns(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct rows (K, J) of ``grades`` and how many images (K,) have each; rated images only."""
        rated = self.grades[(self.grades > 0).any(1)]
        return _distinct(rated)


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(rows):
        return rows, np.zeros(0, dtype=int)
    return np.unique(rows, axis=0, return_counts=True)
