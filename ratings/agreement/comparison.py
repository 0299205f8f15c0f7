"""Two groups of images compared by what several readers gave them, with methods for ordered grades.

Two generators, or real and synthetic images. Readers differ in severity, so that images are compared within a
reader and the readers' results are averaged. Grades are only ordered: no means, no t-tests.

Sources: probability of superiority, the area under the visual grading characteristics curve, Båth & Månsson, Br J
Radiol 80 (2007) 169; van Elteren's stratified Wilcoxon test, Bull Inst Int Stat 37 (1960) 351; the common
cumulative odds ratio of a proportional odds model, Liu & Agresti, Biometrics 52 (1996) 1223.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import erfc, sqrt

import numpy as np

from ratings.agreement.estimate import BY_DEFAULT, Bootstrap, Estimate, draw_weights, share_estimate
from ratings.agreement.table import RatingTable

_FEW_IMAGES = 30  # in the smaller group; below, the test permutes instead of trusting the normal distribution
_NUM_PERMUTATIONS = 9999
_CHUNK_CELLS = 2_000_000  # permuted scores held at a time
_ROUNDING = 1e-9


@dataclass(frozen=True)
class GroupGrades:
    """What one group of images was given."""

    histogram: tuple[int, ...]  # ratings by grade, poor first
    shares: tuple[Estimate, ...]  # of the ratings, by grade


@dataclass(frozen=True)
class ReaderSuperiority:
    """One reader's part in a comparison."""

    reader: str
    superiority: float  # 0 to 1, as below
    n_first: int  # ratings of the first group
    n_second: int


@dataclass(frozen=True)
class GroupComparison:
    """The first group of images against the second."""

    first: GroupGrades
    second: GroupGrades
    superiority: Estimate  # P(an image of the first is graded higher) + half P(equal): 0.5 no difference
    odds_ratio: Estimate  # of a higher grade in the first, the same at every cut of the scale: 1 no difference
    p_value: float | None  # van Elteren, two-sided
    readers: tuple[ReaderSuperiority, ...]  # those who rated images of both groups
    reason: str = ""  # why there is no comparison; empty: there is


def compare_groups(
    table: RatingTable, is_first: np.ndarray, *, random_readers: bool = True, bootstrap: Bootstrap = BY_DEFAULT
) -> GroupComparison:
    """Compare the images where ``is_first`` (N,) is true with the others.

    The intervals resample the images of each group and, with ``random_readers``, the readers too: they then speak of
    other readers of the same kind, otherwise of these alone. With fewer than five readers the former are rough.
    The test holds the readers fixed; it permutes images, whose ratings by several readers stay together, so that
    readers who see the same images are not counted as independent. Below 30 images in a group the permutations
    are drawn (9,999, seeded), else their distribution is taken as normal with its exact variance.
    """
    is_first = np.asarray(is_first, dtype=bool)
    if is_first.shape != (len(table.images),):
        raise ValueError(
            f"is_first has shape {is_first.shape}: give one truth value for each of {len(table.images)} images."
        )
    groups = tuple(_rated(table.grades[side]) for side in (is_first, ~is_first))
    shares = tuple(_group_grades(grades, table.num_grades, random_readers, bootstrap) for grades in groups)
    is_shared = (groups[0] > 0).any(0) & (groups[1] > 0).any(0)
    first, second = (_rated(grades[:, is_shared]) for grades in groups)
    reason = _obstacle(groups, first, second)
    if reason:
        none = Estimate.undefined(reason)
        return GroupComparison(*shares, none, none, None, (), reason)
    superiority, odds_ratio = _estimates(first, second, table.num_grades, random_readers, bootstrap)
    return GroupComparison(
        *shares,
        superiority=superiority,
        odds_ratio=odds_ratio,
        p_value=_van_elteren(first, second, table.num_grades, bootstrap.seed),
        readers=_by_reader(table, is_shared, first, second),
    )


def _rated(grades: np.ndarray) -> np.ndarray:
    """The images with a rating."""
    return grades[(grades > 0).any(1)]


def _obstacle(groups: tuple[np.ndarray, np.ndarray], first: np.ndarray, second: np.ndarray) -> str:
    for name, grades in zip(("first", "second"), groups, strict=True):
        if len(grades) == 0:
            return f"No image of the {name} group has a rating."
    if first.shape[1] == 0:
        return "No reader has rated images of both groups: images are compared within a reader only."
    if min(len(first), len(second)) < 2:
        return "One of the groups has a single image rated by such a reader: at least two are needed."
    return ""


def _grade_cells(grades: np.ndarray, num_grades: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows as (K, J Q) ones and zeros, and how many images (K,) have each."""
    patterns, counts = np.unique(grades, axis=0, return_counts=True)
    cells = patterns[:, :, None] == np.arange(1, num_grades + 1)
    return cells.reshape(len(patterns), -1).astype(float), counts


def _resamples(
    groups: tuple[np.ndarray, ...], num_grades: int, random_readers: bool, bootstrap: Bootstrap
) -> Iterator[tuple[np.ndarray, ...]]:
    """Blocks of counts (b, J, Q) for each group, and how often each reader was drawn (b, J)."""
    num_readers = groups[0].shape[1]
    cells, counts = zip(*(_grade_cells(grades, num_grades) for grades in groups), strict=True)
    *of_images, of_readers = np.random.default_rng(bootstrap.seed).spawn(len(groups) + 1)
    for size in bootstrap.blocks(*counts):
        drawn = [
            (draw_weights(count, size, generator) @ cell).reshape(size, num_readers, num_grades)
            for cell, count, generator in zip(cells, counts, of_images, strict=True)
        ]
        times = np.ones((size, num_readers))
        if random_readers and num_readers > 1:
            times = of_readers.multinomial(num_readers, np.full(num_readers, 1 / num_readers), size).astype(float)
        yield *drawn, times


def _counts(grades: np.ndarray, num_grades: int) -> np.ndarray:
    """(1, J, Q) how often each reader gave each grade."""
    return np.stack([(grades == grade).sum(0) for grade in range(1, num_grades + 1)], 1)[None].astype(float)


def _method(random_readers: bool, num_readers: int, bootstrap: Bootstrap) -> str:
    drawn = "images and readers" if random_readers and num_readers > 1 else "images"
    return f"bootstrap over {drawn}, {bootstrap.num_resamples} resamples"


def _estimates(
    first: np.ndarray, second: np.ndarray, num_grades: int, random_readers: bool, bootstrap: Bootstrap
) -> tuple[Estimate, Estimate]:
    num_readers = first.shape[1]
    observed = (_counts(first, num_grades), _counts(second, num_grades), np.ones((1, num_readers)))
    draws = [
        (_superiority(*block), _odds_ratio(*block))
        for block in _resamples((first, second), num_grades, random_readers, bootstrap)
    ]
    n_images, n_ratings = len(first) + len(second), int((first > 0).sum() + (second > 0).sum())
    alone = "One reader: the interval says nothing about other readers." if num_readers == 1 else ""
    found = []
    for place, statistic in enumerate((_superiority, _odds_ratio)):
        value = float(statistic(*observed)[0])
        if not np.isfinite(value):
            found.append(Estimate.undefined(_NO_ODDS, n_images=n_images, n_ratings=n_ratings))
            continue
        low, high, reason = bootstrap.interval(np.concatenate([block[place] for block in draws]))
        method = "" if low is None else _method(random_readers, num_readers, bootstrap)
        found.append(Estimate(value, low, high, n_images, n_ratings, reason or alone, method))
    return tuple(found)


_NO_ODDS = "No odds ratio: no reader gave an image of the second group a higher grade than one of the first."


def _superiority(first: np.ndarray, second: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(B,) from counts (B, J, Q): the readers' probabilities of superiority in van Elteren's weights."""
    below = second.cumsum(2) - second
    wins = (first * (below + second / 2)).sum(2)
    num_first, num_second = first.sum(2), second.sum(2)
    weight = times / (num_first + num_second + 1)
    comparisons = (weight * num_first * num_second).sum(1)
    return (weight * wins).sum(1) / np.where(comparisons > 0, comparisons, np.nan)


def _odds_ratio(first: np.ndarray, second: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(B,) Liu and Agresti's Mantel-Haenszel estimate over readers and cuts of the scale."""
    num_first, num_second = first.sum(2, keepdims=True), second.sum(2, keepdims=True)
    first_above = num_first - first.cumsum(2)[:, :, :-1]
    second_above = num_second - second.cumsum(2)[:, :, :-1]
    weight = times[:, :, None] / np.maximum(num_first + num_second, 1)
    for_first = (weight * first_above * (num_second - second_above)).sum((1, 2))
    for_second = (weight * second_above * (num_first - first_above)).sum((1, 2))
    return for_first / np.where(for_second > 0, for_second, np.nan)


def _van_elteren(first: np.ndarray, second: np.ndarray, num_grades: int, seed: int) -> float:
    """Two-sided p: rank sums of the first group over readers, under permutations of the images."""
    grades = np.concatenate([first, second])
    scores = np.zeros(len(grades))
    for column in grades.T:
        given = np.bincount(column, minlength=num_grades + 1)[1:]
        midrank = given.cumsum() - (given - 1) / 2
        score = midrank / (given.sum() + 1) - 0.5
        scores += np.where(column > 0, score[np.maximum(column, 1) - 1], 0.0)
    statistic = scores[: len(first)].sum()  # its expectation is 0: so is the sum of all scores
    if min(len(first), len(second)) < _FEW_IMAGES:
        return _permutation_p(scores, len(first), statistic, seed)
    variance = len(first) * len(second) / (len(grades) * (len(grades) - 1)) * (scores**2).sum()
    return float(erfc(abs(statistic) / sqrt(2 * variance))) if variance > 0 else 1.0


def _permutation_p(scores: np.ndarray, num_first: int, statistic: float, seed: int) -> float:
    generator = np.random.default_rng(seed)
    as_far = 1  # the order that was observed is one of the permutations
    block = max(1, _CHUNK_CELLS // len(scores))
    for start in range(0, _NUM_PERMUTATIONS, block):
        size = min(block, _NUM_PERMUTATIONS - start)
        sums = generator.permuted(np.tile(scores, (size, 1)), axis=1)[:, :num_first].sum(1)
        as_far += int((np.abs(sums) >= abs(statistic) - _ROUNDING).sum())
    return as_far / (_NUM_PERMUTATIONS + 1)


def _by_reader(
    table: RatingTable, is_shared: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[ReaderSuperiority, ...]:
    names = [name for name, shared in zip(table.readers, is_shared, strict=True) if shared]
    of_first, of_second = _counts(first, table.num_grades), _counts(second, table.num_grades)
    found = []
    for number, name in enumerate(names):
        one = slice(number, number + 1)
        value = _superiority(of_first[:, one], of_second[:, one], np.ones((1, 1)))[0]
        counts = (int(of_first[:, one].sum()), int(of_second[:, one].sum()))
        found.append(ReaderSuperiority(name, float(value), *counts))
    return tuple(found)


@dataclass(frozen=True)
class ReaderComparison:
    """One reader's superiority with its interval over images, for that reader alone."""

    reader: str
    superiority: Estimate
    n_first: int  # ratings of the first group
    n_second: int


def compare_within_readers(
    table: RatingTable, is_first: np.ndarray, *, bootstrap: Bootstrap = BY_DEFAULT
) -> tuple[ReaderComparison, ...]:
    """Every reader's probability of superiority, or why there is none; the images of both groups are resampled."""
    is_first = np.asarray(is_first, dtype=bool)
    found = []
    for number, name in enumerate(table.readers):
        own = table.grades[:, [number]]
        first, second = _rated(own[is_first]), _rated(own[~is_first])
        if min(len(first), len(second)) < 2:
            value = Estimate.undefined(f"Reader {name} has rated fewer than two images of one of the groups.")
        else:
            value, _ = _estimates(first, second, table.num_grades, False, bootstrap)
            # That one reader speaks for no other goes without saying here; why there is no interval does not.
            value = value if value.low is None else replace(value, reason="")
        found.append(ReaderComparison(name, value, len(first), len(second)))
    return tuple(found)


def _group_grades(grades: np.ndarray, num_grades: int, random_readers: bool, bootstrap: Bootstrap) -> GroupGrades:
    """Shares of the grades among a group's ratings; by Wilson where no image has a second rating."""
    counts = np.array([(grades == grade).sum() for grade in range(1, num_grades + 1)])
    histogram = tuple(map(int, counts))
    total, none = int(counts.sum()), "No image of this group has a rating."
    is_single = bool(((grades > 0).sum(1) <= 1).all()) and (not random_readers or (grades > 0).any(0).sum() <= 1)
    if total == 0 or is_single:
        confidence = bootstrap.confidence
        return GroupGrades(
            histogram,
            tuple(
                share_estimate(n, total, n_ratings=total, undefined=none, confidence=confidence) for n in histogram
            ),
        )
    readers = grades[:, (grades > 0).any(0)]
    values = np.concatenate(
        [_shares(drawn, times) for drawn, times in _resamples((readers,), num_grades, random_readers, bootstrap)]
    )
    method = _method(random_readers, readers.shape[1], bootstrap)
    found = []
    for number in range(num_grades):
        low, high, reason = bootstrap.interval(values[:, number])
        share = float(counts[number] / total)
        found.append(Estimate(share, low, high, len(grades), total, reason, method if low is not None else ""))
    return GroupGrades(histogram, tuple(found))


def _shares(drawn: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(B, Q) shares of the grades from counts (B, J, Q) of readers drawn ``times`` (B, J)."""
    sums = (drawn * times[:, :, None]).sum(1)
    total = sums.sum(1, keepdims=True)
    return sums / np.where(total > 0, total, np.nan)


CALLED_SYNTHETIC, CALLED_REAL = 1, 2  # the two "grades" of a table of calls


@dataclass(frozen=True)
class ReaderDiscrimination:
    """One reader's calls; Wilson intervals."""

    reader: str
    real_called_real: Estimate
    synthetic_called_real: Estimate


@dataclass(frozen=True)
class Discrimination:
    """Whether readers tell real from synthetic images (the "visual Turing test")."""

    real_called_real: Estimate  # share of the calls on real images
    synthetic_called_real: Estimate  # share of the calls on synthetic images: 1 all are taken for real
    accuracy: Estimate  # balanced over both kinds and averaged over readers: 0.5 is guessing
    p_value: float | None  # of "the readers guess"
    readers: tuple[ReaderDiscrimination, ...]
    reason: str = ""  # why there is no accuracy; empty: there is


def discrimination(
    calls: RatingTable, is_real: np.ndarray, *, random_readers: bool = True, bootstrap: Bootstrap = BY_DEFAULT
) -> Discrimination:
    """From a table of calls (num_grades=2; CALLED_SYNTHETIC, CALLED_REAL, 0 no call) and what is real (N,).

    Where readers only grade and never call, `compare_groups` of real against synthetic images says the like: how
    often the real one is graded higher.
    """
    if calls.num_grades != CALLED_REAL:
        raise ValueError(f"Calls are 1 (synthetic) or 2 (real); this table has {calls.num_grades} grades.")
    is_real = np.asarray(is_real, dtype=bool)
    compared = compare_groups(calls, is_real, random_readers=random_readers, bootstrap=bootstrap)
    confidence = bootstrap.confidence
    readers = tuple(
        ReaderDiscrimination(
            name,
            _called_real(calls.grades[is_real, number], "real", confidence),
            _called_real(calls.grades[~is_real, number], "synthetic", confidence),
        )
        for number, name in enumerate(calls.readers)
    )
    real, synthetic = (group.shares[CALLED_REAL - 1] for group in (compared.first, compared.second))
    return Discrimination(
        real_called_real=_of_kind(real, "real"),
        synthetic_called_real=_of_kind(synthetic, "synthetic"),
        accuracy=compared.superiority,
        p_value=compared.p_value,
        readers=readers,
        reason=compared.reason,
    )


def _of_kind(share: Estimate, kind: str) -> Estimate:
    return replace(share, reason=f"No {kind} image was called.") if share.estimate is None else share


def _called_real(calls: np.ndarray, kind: str, confidence: float) -> Estimate:
    total = int((calls > 0).sum())
    return share_estimate(
        int((calls == CALLED_REAL).sum()),
        total,
        n_ratings=total,
        undefined=f"This reader has called no {kind} image.",
        confidence=confidence,
    )
