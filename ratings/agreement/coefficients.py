"""Agreement of several readers corrected for chance, missing ratings allowed.

Sources: Krippendorff, Content Analysis (2013), chapter 12; Cohen, Psychol Bull 70 (1968) 213; Fleiss, Psychol Bull
76 (1971) 378; Gwet, Handbook of Inter-Rater Reliability (2014), chapters 3 to 5, for AC1, AC2 and for the treatment
of missing ratings in all coefficients but Krippendorff's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ratings.agreement.estimate import BY_DEFAULT, Bootstrap, Estimate, bootstrap_estimate
from ratings.agreement.intraclass import IntraclassCorrelation, intraclass_correlation
from ratings.agreement.table import RatingTable

Level = Literal["nominal", "ordinal", "interval"]
Weights = Literal["identity", "ordinal", "linear", "quadratic", "within one"]
MIN_SHARED = 10  # images a pair of readers must share for its kappa to enter the mean over pairs
_NO_CHANCE = 1e-12  # disagreement expected by chance below this is none


def agreement_weights(weights: Weights, num_grades: int) -> np.ndarray:
    """(Q, Q) how far two grades agree, 1 on the diagonal; quadratic: 1 - (i - j)^2 / (Q - 1)^2."""
    grade = np.arange(num_grades)
    apart = np.abs(grade[:, None] - grade)
    widest = max(1, num_grades - 1)
    if weights == "identity":
        return (apart == 0).astype(float)
    if weights == "within one":
        return (apart <= 1).astype(float)
    if weights == "linear":
        return 1 - apart / widest
    if weights == "quadratic":
        return 1 - (apart / widest) ** 2
    if weights == "ordinal":  # Gwet: pairs of grades that lie between the two, both included
        return 1 - apart * (apart + 1) / (widest * (widest + 1))
    raise ValueError(f"Unknown weights {weights!r}: identity, ordinal, linear, quadratic or within one.")


def krippendorff_alpha(
    table: RatingTable, *, level: Level = "ordinal", bootstrap: Bootstrap = BY_DEFAULT
) -> Estimate:
    """Krippendorff's alpha, 1 - observed / expected disagreement; 1 perfect, 0 as by chance, may be negative."""
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"Unknown level {level!r}: nominal, ordinal or interval.")
    obstacle = why_not_comparable(table)
    profiles, counts = _comparable(table)
    if obstacle:
        return Estimate.undefined(obstacle, n_images=int(counts.sum()), n_ratings=_ratings(profiles, counts))
    given = profiles.sum(1)
    pairs = profiles[:, :, None] * profiles[:, None, :] - profiles[:, :, None] * np.eye(table.num_grades)
    summands = (pairs / (given - 1)[:, None, None]).reshape(len(profiles), -1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return _alpha((weights @ summands).reshape(-1, table.num_grades, table.num_grades), level)

    return bootstrap_estimate(
        statistic,
        counts,
        bootstrap,
        n_ratings=_ratings(profiles, counts),
        undefined=_one_grade(profiles),
    )


def _alpha(coincidences: np.ndarray, level: Level) -> np.ndarray:
    """(B,) alpha from coincidence matrices (B, Q, Q)."""
    totals = coincidences.sum(2)
    number = totals.sum(1)
    if level == "ordinal":  # half the ratings at both ends and all between: distances of mid-ranks
        place = totals.cumsum(1) - totals / 2
    else:
        place = np.broadcast_to(np.arange(totals.shape[1], dtype=float), totals.shape)
    distance = (place[:, :, None] - place[:, None, :]) ** 2
    if level == "nominal":
        distance = np.broadcast_to(1 - np.eye(totals.shape[1]), coincidences.shape)
    observed = (coincidences * distance).sum((1, 2))
    expected = (totals[:, :, None] * totals[:, None, :] * distance).sum((1, 2))
    # Where all ratings are of one grade nothing was expected to differ, and 0 / 0 is no agreement.
    return _ratio_below_one(observed * (number - 1), expected)


def _ratio_below_one(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """1 - observed / expected, NaN where nothing is expected."""
    is_defined = expected > _NO_CHANCE
    return np.where(is_defined, 1 - observed / np.where(is_defined, expected, 1), np.nan)


def gwet_ac(table: RatingTable, *, weights: Weights = "quadratic", bootstrap: Bootstrap = BY_DEFAULT) -> Estimate:
    """Gwet's AC2; AC1 with identity weights. Less troubled than kappa and alpha where one grade prevails."""
    similarity = agreement_weights(weights, table.num_grades)
    scale = similarity.sum() / (table.num_grades * (table.num_grades - 1))
    return _from_counts(table, similarity, lambda share: scale * (share * (1 - share)).sum(1), bootstrap)


def fleiss_kappa(table: RatingTable, *, weights: Weights = "identity", bootstrap: Bootstrap = BY_DEFAULT) -> Estimate:
    """Fleiss' kappa, in Gwet's form that admits missing ratings and weights; Fleiss' own on complete tables."""
    similarity = agreement_weights(weights, table.num_grades)
    return _from_counts(table, similarity, lambda share: ((share @ similarity) * share).sum(1), bootstrap)


def _from_counts(
    table: RatingTable,
    similarity: np.ndarray,
    chance: Callable[[np.ndarray], np.ndarray],
    bootstrap: Bootstrap,
) -> Estimate:
    """(observed - chance) / (1 - chance) with ``chance`` a function of the mean shares of the grades (B, Q)."""
    profiles, counts = table.profiles
    obstacle = why_not_comparable(table) or _constant(_comparable(table)[0])
    if obstacle:
        return Estimate.undefined(obstacle, n_images=int(counts.sum()), n_ratings=_ratings(profiles, counts))
    observed, is_comparable = _observed(profiles, similarity)
    # Images with one rating tell how common the grades are, but not who agrees.
    summands = np.column_stack([observed, is_comparable, profiles / profiles.sum(1, keepdims=True)])

    def statistic(weights: np.ndarray) -> np.ndarray:
        sums = weights @ summands
        shares = sums[:, 2:]
        expected = chance(shares / shares.sum(1, keepdims=True))
        comparable = sums[:, 1]
        agreement = sums[:, 0] / np.where(comparable > 0, comparable, np.nan)
        is_constant = (shares > 0).sum(1) < 2
        return np.where(is_constant, np.nan, _ratio_below_one(1 - agreement, 1 - expected))

    return bootstrap_estimate(
        statistic,
        counts,
        bootstrap,
        n_ratings=_ratings(profiles, counts),
        undefined=_one_grade(profiles),
    )


def raw_agreement(
    table: RatingTable, *, weights: Weights = "identity", bootstrap: Bootstrap = BY_DEFAULT
) -> Estimate:
    """Share of pairs of ratings of one image that agree, averaged over images; "within one": differ by at most 1.

    Nothing is taken off for chance, so one grade only is a fair 1 here.
    """
    profiles, counts = _comparable(table)
    n_ratings = _ratings(profiles, counts)
    obstacle = why_not_comparable(table)
    if obstacle:
        return Estimate.undefined(obstacle, n_images=int(counts.sum()), n_ratings=n_ratings)
    observed, _ = _observed(profiles, agreement_weights(weights, table.num_grades))

    def statistic(weights: np.ndarray) -> np.ndarray:
        return weights @ observed / weights.sum(1)

    return bootstrap_estimate(statistic, counts, bootstrap, n_ratings=n_ratings, undefined="")


def _observed(profiles: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per profile (K,): mean similarity of its pairs of ratings (0 with one rating), and whether it has a pair."""
    given = profiles.sum(1)
    is_comparable = given >= 2
    alike = (profiles * (profiles @ similarity - 1)).sum(1)
    return np.where(is_comparable, alike / np.where(is_comparable, given * (given - 1), 1), 0.0), is_comparable


def cohen_kappa(table: RatingTable, *, weights: Weights = "quadratic", bootstrap: Bootstrap = BY_DEFAULT) -> Estimate:
    """Weighted kappa of two readers over the images that both rated; raises ValueError for another number."""
    if len(table.readers) != 2:
        raise ValueError(f"Cohen's kappa is of two readers; the table has {len(table.readers)}: take of_readers().")
    return mean_pairwise_kappa(table, weights=weights, min_shared=1, bootstrap=bootstrap)


def mean_pairwise_kappa(
    table: RatingTable,
    *,
    weights: Weights = "quadratic",
    min_shared: int = MIN_SHARED,
    bootstrap: Bootstrap = BY_DEFAULT,
) -> Estimate:
    """Mean of Cohen's weighted kappa over the pairs of readers, each pair alike.

    Pairs that share fewer than ``min_shared`` images, or whose kappa is not defined (both gave one and the same
    grade throughout), are left out, and ``reason`` says how many.
    """
    profiles, profile_counts = _comparable(table)
    obstacle = why_not_comparable(table)
    n_ratings = _ratings(profiles, profile_counts)
    if obstacle:
        return Estimate.undefined(obstacle, n_images=int(profile_counts.sum()), n_ratings=n_ratings)
    patterns, counts = _comparable_patterns(table)
    disagreement = 1 - agreement_weights(weights, table.num_grades)
    kappas, shared = _pair_kappas(patterns, counts[None].astype(float), disagreement)
    is_used = np.isfinite(kappas[0]) & (shared[0] >= min_shared)

    def statistic(drawn: np.ndarray) -> np.ndarray:
        values = _pair_kappas(patterns, drawn, disagreement)[0][:, is_used]
        defined = np.isfinite(values)
        number = defined.sum(1)
        return np.where(defined, values, 0).sum(1) / np.where(number > 0, number, np.nan)

    left_out = int((~is_used).sum())
    return bootstrap_estimate(
        statistic,
        counts,
        bootstrap,
        n_ratings=n_ratings,
        undefined=_constant(profiles) or _no_pair(min_shared),
        remark=f"{left_out} of {len(is_used)} pairs of readers left out." if left_out else "",
    )


def _no_pair(min_shared: int) -> str:
    return (
        f"No pair of readers has {min_shared} or more images in common to which they gave more than one grade: "
        "kappa is not defined."
    )


def _pair_kappas(
    patterns: np.ndarray, weights: np.ndarray, disagreement: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(B, P) weighted kappas of all P pairs of readers, and how many images (B, P) each pair shares."""
    num_grades, num_readers = len(disagreement), patterns.shape[1]
    is_grade = patterns[:, :, None] == np.arange(1, num_grades + 1)
    kappas, shared = [], []
    for reader in range(num_readers - 1):  # one reader at a time keeps the summands small
        pairs = is_grade[:, reader, None, :, None] & is_grade[:, reader + 1 :, None, :]
        tables = weights @ pairs.reshape(len(patterns), -1).astype(float)
        tables = tables.reshape(len(weights), -1, num_grades, num_grades)
        kappas.append(kappa_of_tables(tables, disagreement))
        shared.append(tables.sum((2, 3)))
    return np.concatenate(kappas, 1), np.concatenate(shared, 1)


def kappa_of_tables(tables: np.ndarray, disagreement: np.ndarray) -> np.ndarray:
    """Weighted kappa of each contingency table (..., Q, Q); NaN where both sides are one and the same grade."""
    chance = tables.sum(-1)[..., :, None] * tables.sum(-2)[..., None, :]
    observed = (tables * disagreement).sum((-2, -1)) * tables.sum((-2, -1))
    return _ratio_below_one(observed, (chance * disagreement).sum((-2, -1)))


def _comparable(table: RatingTable) -> tuple[np.ndarray, np.ndarray]:
    """The profiles with two ratings or more."""
    profiles, counts = table.profiles
    is_comparable = profiles.sum(1) >= 2
    return profiles[is_comparable], counts[is_comparable]


def _comparable_patterns(table: RatingTable) -> tuple[np.ndarray, np.ndarray]:
    patterns, counts = table.patterns
    is_comparable = (patterns > 0).sum(1) >= 2
    return patterns[is_comparable], counts[is_comparable]


def _ratings(profiles: np.ndarray, counts: np.ndarray) -> int:
    return int(profiles.sum(1) @ counts) if len(counts) else 0


def why_not_comparable(table: RatingTable) -> str:
    """Why no agreement can be computed, in a sentence; empty where it can."""
    num_readers = int((table.grades > 0).any(0).sum())
    if num_readers == 0:
        return "There are no ratings."
    if num_readers == 1:
        return "Only one reader has rated: agreement takes two."
    number = int((table.grade_counts.sum(1) >= 2).sum())
    if number == 0:
        return "No image was rated by two readers."
    if number == 1:
        return "Only one image was rated by two readers or more: at least two such images are needed."
    return ""


def _constant(profiles: np.ndarray) -> str:
    """The sentence for ratings of a single grade; empty where there are several."""
    return _one_grade(profiles) if (profiles.sum(0) > 0).sum() < 2 else ""


def _one_grade(profiles: np.ndarray) -> str:
    grade = int(profiles.sum(0).argmax()) + 1
    return (
        f"Every rating that can be compared is grade {grade}: whether readers agree beyond chance cannot be told. "
        "See raw agreement."
    )


@dataclass(frozen=True)
class AgreementReport:
    """What METHOD and GRRAS want side by side: no single coefficient tells the whole."""

    histogram: tuple[int, ...]  # ratings by grade, poor first
    exact: Estimate  # share of pairs of ratings that are equal
    within_one: Estimate  # share that differ by at most one grade
    alpha_ordinal: Estimate
    alpha_nominal: Estimate
    alpha_interval: Estimate
    kappa_quadratic: Estimate  # mean over pairs of readers
    kappa_fleiss: Estimate
    ac1: Estimate
    ac2: Estimate  # quadratic weights
    icc: IntraclassCorrelation


def agreement_report(table: RatingTable, bootstrap: Bootstrap = BY_DEFAULT) -> AgreementReport:
    """Every coefficient of one table, with intervals from the same seed."""
    return AgreementReport(
        histogram=tuple(map(int, table.grade_counts.sum(0))),
        exact=raw_agreement(table, bootstrap=bootstrap),
        within_one=raw_agreement(table, weights="within one", bootstrap=bootstrap),
        alpha_ordinal=krippendorff_alpha(table, level="ordinal", bootstrap=bootstrap),
        alpha_nominal=krippendorff_alpha(table, level="nominal", bootstrap=bootstrap),
        alpha_interval=krippendorff_alpha(table, level="interval", bootstrap=bootstrap),
        kappa_quadratic=mean_pairwise_kappa(table, bootstrap=bootstrap),
        kappa_fleiss=fleiss_kappa(table, bootstrap=bootstrap),
        ac1=gwet_ac(table, weights="identity", bootstrap=bootstrap),
        ac2=gwet_ac(table, bootstrap=bootstrap),
        icc=intraclass_correlation(table, confidence=bootstrap.confidence),
    )
