"""One reader at a time: against the own repeats, the other readers, known grades."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ratings.agreement.coefficients import agreement_weights, cohen_kappa, kappa_of_tables
from ratings.agreement.estimate import BY_DEFAULT, Bootstrap, Estimate, bootstrap_estimate, share_estimate
from ratings.agreement.table import NUM_GRADES, RatingTable

MIN_OTHERS = 2  # further readers of an image who make a panel


@dataclass(frozen=True)
class IntraReader:
    """A reader and the images that were shown twice."""

    reader: str
    kappa: Estimate  # quadratic weights, first against second rating
    exact: Estimate  # share of equal ratings, Wilson
    within_one: Estimate  # share that differ by at most one grade, Wilson


@dataclass(frozen=True)
class IntraReaderReport:
    """Every reader who was shown repeats, and their mean."""

    readers: tuple[IntraReader, ...]
    mean_kappa: Estimate  # of the readers whose kappa is defined, each alike


def intra_reader(
    images: Sequence,
    readers: Sequence,
    grades: Sequence[int],
    occurrences: Sequence[int],
    *,
    num_grades: int = NUM_GRADES,
    bootstrap: Bootstrap = BY_DEFAULT,
) -> IntraReaderReport:
    """What repeats say, from one entry per rating (R,): image, reader, grade, occurrence (1 first, 2 repeat).

    Ratings without a counterpart and occurrences beyond the second do not enter. Raises ValueError where a reader
    has two ratings of one image with the same occurrence.
    """
    occurrence = np.asarray(occurrences, dtype=int)
    image, reader, grade = (np.asarray(values) for values in (images, readers, grades))
    first, second = (
        RatingTable.from_ratings(image[is_it], reader[is_it], grade[is_it], num_grades=num_grades)
        for is_it in (occurrence == 1, occurrence == 2)
    )
    pairs = _repeat_pairs(first, second)
    reports = tuple(
        _intra_reader(name, pairs[:, number], num_grades, bootstrap) for number, name in enumerate(second.readers)
    )
    return IntraReaderReport(reports, _mean_kappa(pairs, num_grades, bootstrap))


def _repeat_pairs(first: RatingTable, second: RatingTable) -> np.ndarray:
    """(N, J, 2) first and second grades by images and readers of ``second``; 0, 0 where one is missing."""
    pairs = np.zeros((*second.grades.shape, 2), dtype=int)
    row = {name: number for number, name in enumerate(first.images)}
    column = {name: number for number, name in enumerate(first.readers)}
    rows = [number for number, name in enumerate(second.images) if name in row]
    columns = [number for number, name in enumerate(second.readers) if name in column]
    if rows and columns:
        earlier = first.grades[[row[second.images[number]] for number in rows]]
        pairs[np.ix_(rows, columns, [0])] = earlier[:, [column[second.readers[number]] for number in columns], None]
    pairs[:, :, 1] = second.grades
    return pairs * (pairs > 0).all(2, keepdims=True)


def _intra_reader(name: str, pairs: np.ndarray, num_grades: int, bootstrap: Bootstrap) -> IntraReader:
    pairs = pairs[pairs[:, 0] > 0]
    none = f"Reader {name} has rated no image twice."
    apart = np.abs(pairs[:, 0] - pairs[:, 1])
    exact, within_one = (
        share_estimate(
            int((apart <= most).sum()),
            len(pairs),
            n_ratings=pairs.size,
            undefined=none,
            confidence=bootstrap.confidence,
        )
        for most in (0, 1)
    )
    return IntraReader(name, _kappa(pairs, num_grades, none, bootstrap), exact, within_one)


def _kappa(pairs: np.ndarray, num_grades: int, none: str, bootstrap: Bootstrap) -> Estimate:
    """Quadratic kappa of two columns (n, 2); the reasons speak of images, as the columns need not be two readers."""
    if len(pairs) < 2:
        reason = none if len(pairs) == 0 else "Only one image can be compared: at least two are needed."
        return Estimate.undefined(reason, n_images=len(pairs), n_ratings=pairs.size)
    return cohen_kappa(RatingTable.from_matrix(pairs, num_grades=num_grades), bootstrap=bootstrap)


def _mean_kappa(pairs: np.ndarray, num_grades: int, bootstrap: Bootstrap) -> Estimate:
    is_pair = pairs[:, :, 0] > 0
    pairs, is_pair = pairs[is_pair.any(1)], is_pair[is_pair.any(1)]
    n_ratings = 2 * int(is_pair.sum())
    if len(pairs) < 2:
        reason = "No reader has rated an image twice." if len(pairs) == 0 else "Only one image was rated twice."
        return Estimate.undefined(reason, n_images=len(pairs), n_ratings=n_ratings)
    grade = np.arange(1, num_grades + 1)
    cells = (pairs[:, :, 0, None, None] == grade[:, None]) & (pairs[:, :, 1, None, None] == grade)
    summands = cells.reshape(len(pairs), -1).astype(float)
    disagreement = 1 - agreement_weights("quadratic", num_grades)

    def statistic(weights: np.ndarray) -> np.ndarray:
        tables = (weights @ summands).reshape(len(weights), -1, num_grades, num_grades)
        kappas = kappa_of_tables(tables, disagreement)
        is_defined = np.isfinite(kappas)
        number = is_defined.sum(1)
        return np.where(is_defined, kappas, 0).sum(1) / np.where(number > 0, number, np.nan)

    return bootstrap_estimate(
        statistic,
        np.ones(len(pairs), dtype=int),
        bootstrap,
        n_ratings=n_ratings,
        undefined="Every reader gave one grade only to the images shown twice.",
    )


@dataclass(frozen=True)
class ReaderAgainstReference:
    """A reader beside a reference: the majority of the others, or known grades."""

    reader: str
    exact: Estimate  # share of images on which reader and reference are equal, Wilson
    kappa: Estimate  # quadratic weights
    bias: Estimate  # mean of rating - reference in grades; above 0 the reader is milder
    confusion: tuple[tuple[int, ...], ...]  # (Q, Q) images: row the reference, column the reader


def against_panel(
    table: RatingTable, *, min_others: int = MIN_OTHERS, bootstrap: Bootstrap = BY_DEFAULT
) -> tuple[ReaderAgainstReference, ...]:
    """Each reader against all the others: their majority (exact, kappa, confusion) and their mean (bias).

    Only images that ``min_others`` others have rated; where no grade has most votes there is no majority, and the
    image enters the bias alone. The reader's own rating is never part of the panel.
    """
    values = np.arange(1, table.num_grades + 1)
    found = []
    for number, name in enumerate(table.readers):
        own = table.grades[:, number].astype(int)
        votes = table.grade_counts - (own[:, None] == values)
        num_votes = votes.sum(1)
        is_used = (own > 0) & (num_votes >= min_others)
        most = votes.max(1, initial=0)
        is_majority = is_used & ((votes == most[:, None]).sum(1) == 1)
        mean = votes @ values / np.maximum(num_votes, 1)
        pairs = np.column_stack([votes.argmax(1) + 1, own])[is_majority]
        none = f"Reader {name} has rated no image on which a majority of {min_others} others or more agrees."
        found.append(
            _against(name, pairs, (own - mean)[is_used], int(num_votes[is_used].sum()), none, table, bootstrap)
        )
    return tuple(found)


def against_truth(
    table: RatingTable, truth: np.ndarray, *, bootstrap: Bootstrap = BY_DEFAULT
) -> tuple[ReaderAgainstReference, ...]:
    """Each reader against the known grades (N,) of gold images, 0 where unknown; raises ValueError for others."""
    truth = np.asarray(truth, dtype=int)
    if truth.shape != (len(table.images),) or ((truth < 0) | (truth > table.num_grades)).any():
        raise ValueError(
            f"Give one grade, 0 to {table.num_grades} (0: unknown), for each of {len(table.images)} images."
        )
    found = []
    for number, name in enumerate(table.readers):
        own = table.grades[:, number].astype(int)
        pairs = np.column_stack([truth, own])[(own > 0) & (truth > 0)]
        none = f"Reader {name} has rated no image of known grade."
        found.append(_against(name, pairs, pairs[:, 1] - pairs[:, 0], 0, none, table, bootstrap))
    return tuple(found)


def _against(
    name: str,
    pairs: np.ndarray,
    differences: np.ndarray,
    num_panel_ratings: int,
    none: str,
    table: RatingTable,
    bootstrap: Bootstrap,
) -> ReaderAgainstReference:
    """``pairs`` (n, 2) reference and own grade; ``differences`` (m,) own grade less the reference's mean."""
    right = int((pairs[:, 0] == pairs[:, 1]).sum())
    confusion = np.zeros((table.num_grades, table.num_grades), dtype=int)
    np.add.at(confusion, (pairs[:, 0] - 1, pairs[:, 1] - 1), 1)
    return ReaderAgainstReference(
        reader=name,
        exact=share_estimate(
            right, len(pairs), n_ratings=len(pairs), undefined=none, confidence=bootstrap.confidence
        ),
        kappa=_kappa(pairs, table.num_grades, none, bootstrap),
        bias=_mean(differences, len(differences) + num_panel_ratings, none, bootstrap),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def _mean(values: np.ndarray, n_ratings: int, none: str, bootstrap: Bootstrap) -> Estimate:
    """The mean over images (n,) with its interval."""
    if len(values) == 0:
        return Estimate.undefined(none)
    distinct, counts = np.unique(values, return_counts=True)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return weights @ distinct / weights.sum(1)

    return bootstrap_estimate(statistic, counts, bootstrap, n_ratings=n_ratings, undefined=none)
