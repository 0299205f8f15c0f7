"""Writes agreement.json: agreement coefficients of a dozen data sets as reference libraries compute them.

Not run by the tests, and its libraries are no dependencies (two of them are under the GPL). To run it again:

    uv venv /tmp/reference
    uv pip install --python /tmp/reference/bin/python krippendorff statsmodels pingouin scikit-learn
    uv pip install --python /tmp/reference/bin/python --no-deps irrCAC    # its pins are older than the others allow
    /tmp/reference/bin/python tests/ratings/golden/make_agreement_values.py

Each value is one call of one library (see ``VALUES``); null: the library raises or has no number for it. The grades
are stored in the JSON, so that the tests do not depend on a random generator.
"""

import itertools
import json
import math
import warnings
from importlib.metadata import version
from pathlib import Path

import krippendorff
import numpy as np
import pandas as pd
import pingouin
from irrCAC.raw import CAC
from scipy.stats import mannwhitneyu
from sklearn.metrics import cohen_kappa_score
from statsmodels.miscmodels.ordinal_model import OrderedModel
from statsmodels.stats.contingency_tables import StratifiedTable
from statsmodels.stats.inter_rater import aggregate_raters
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_fleiss
from statsmodels.stats.proportion import proportion_confint

LIBRARIES = ("krippendorff", "irrCAC", "statsmodels", "pingouin", "scikit-learn", "numpy", "scipy", "pandas")
OUTPUT = Path(__file__).with_name("agreement.json")
MISSING = math.nan
# Shrout & Fleiss (1979), table 2: ICC(2,1) = .29, ICC(2,4) = .62.
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
# Krippendorff's example of four observers and twelve units: nominal .743, ordinal .815, interval .849.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, MISSING, MISSING, MISSING],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, MISSING, 3],
        [MISSING, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, MISSING],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, MISSING],
    ]
).T


def panel(
    seed: int, num_images: int, num_readers: int, shares: list[float], *, keeps: float = 0.85, missing: float = 0.0
) -> np.ndarray:
    """Readers who see a latent grade with probability ``keeps`` and a neighbouring one otherwise."""
    rng = np.random.default_rng(seed)
    num_grades = len(shares)
    latent = rng.choice(num_grades, num_images, p=shares)[:, None]
    step = np.where(rng.random((num_images, num_readers)) < keeps, 0, rng.choice([-1, 1], (num_images, num_readers)))
    grades = np.clip(latent + step, 0, num_grades - 1) + 1.0
    grades[rng.random(grades.shape) < missing] = MISSING
    return grades


def data_sets() -> dict[str, tuple[int, np.ndarray]]:
    """Name -> number of grades, (N, J) grades."""
    thirds, skewed = [1 / 3] * 3, [0.03, 0.07, 0.90]
    blocks = np.full((20, 2), MISSING)
    blocks[:10, 0], blocks[10:, 1] = 2, 3
    return {
        "complete, 3 readers": (3, panel(1, 60, 3, thirds)),
        "a quarter missing, 4 readers": (3, panel(2, 80, 4, [0.1, 0.2, 0.7], missing=0.25)),
        "skewed, 90 % of one grade": (3, panel(3, 300, 3, skewed)),
        "skewed and missing": (3, panel(4, 300, 5, skewed, missing=0.4)),
        "two readers": (3, panel(5, 50, 2, thirds, keeps=0.7)),
        "two readers, missing": (3, panel(6, 70, 2, [0.2, 0.3, 0.5], keeps=0.7, missing=0.2)),
        "ten readers, three an image": (3, panel(7, 200, 10, [0.2, 0.5, 0.3], missing=0.7)),
        "at chance": (3, np.random.default_rng(8).integers(1, 4, (90, 3)).astype(float)),
        "five grades": (5, panel(9, 100, 4, [0.1, 0.2, 0.3, 0.3, 0.1], keeps=0.6, missing=0.1)),
        "the lowest grade never given": (3, np.array([[2, 3, 3], [3, 3, 3], [2, 2, 3], [2, 2, 2], [3, 2, 3.0]])),
        "perfect": (3, np.repeat([[1], [2], [3], [3], [2], [1.0]], 3, axis=1)),
        "contrary": (3, np.array([[1, 3], [3, 1], [1, 3], [3, 1], [2, 2.0]])),
        "Shrout and Fleiss": (10, np.array(SHROUT_FLEISS, dtype=float)),
        "Krippendorff": (5, KRIPPENDORFF),
        "one grade": (3, np.full((12, 3), 3.0)),
        "one reader": (3, panel(10, 15, 1, thirds)),
        "no overlap": (3, blocks),
        "one image": (3, np.array([[1, 2, 2.0]])),
        "no readers who differ between images": (3, np.tile([1.0, 2.0, 3.0], (8, 1))),
        "two images": (3, np.array([[1, 2, 2], [3, 3, 2.0]])),
        "two images, two readers": (3, np.array([[1, 2], [3, 3.0]])),
        "two images, a cell missing": (3, np.array([[1, 2, MISSING], [3, 3, 2.0]])),
        "one grade, cells missing": (
            3,
            np.array([[2, 2, MISSING], [MISSING, 2, 2], [2, MISSING, 2], [2, 2, 2], [2, 2, 2.0]]),
        ),
        "one grade but for one cell": (3, np.array([[2, 2, 3], *[[2, 2, 2.0]] * 11])),
        "one reader has one rating": (3, np.array([[1, 1, 2], *[[g, g, MISSING] for g in (1, 2, 3, 3, 2, 1.0)]])),
    }


def alpha(grades: np.ndarray, num_grades: int, level: str) -> float:
    return krippendorff.alpha(
        reliability_data=grades.T, level_of_measurement=level, value_domain=list(range(1, num_grades + 1))
    )


def irrcac(grades: np.ndarray, num_grades: int, weights: str, method: str, entry: str) -> float:
    coefficient = CAC(pd.DataFrame(grades), weights=weights, categories=list(range(1, num_grades + 1)), digits=14)
    found = getattr(coefficient, method)()["est"]
    return {"low": lambda: found["confidence_interval"][0], "high": lambda: found["confidence_interval"][1]}.get(
        entry, lambda: found[entry]
    )()


def pair_kappa(grades: np.ndarray, num_grades: int, first: int, second: int, weights: str | None) -> float:
    both = grades[:, [first, second]]
    both = both[~np.isnan(both).any(1)].astype(int)
    return cohen_kappa_score(*both.T, labels=list(range(1, num_grades + 1)), weights=weights)


def mean_kappa(grades: np.ndarray, num_grades: int, min_shared: int) -> float:
    values = []
    for first, second in itertools.combinations(range(grades.shape[1]), 2):
        if (~np.isnan(grades[:, [first, second]]).any(1)).sum() >= min_shared:
            values.append(pair_kappa(grades, num_grades, first, second, "quadratic"))
    return float(np.mean([value for value in values if not math.isnan(value)]))


def complete_fleiss(grades: np.ndarray, num_grades: int) -> float:
    if np.isnan(grades).any() or grades.shape[1] < 2:
        return MISSING
    return statsmodels_fleiss(aggregate_raters(grades.astype(int), n_cat=None)[0])


def icc(grades: np.ndarray, kind: str, entry: str) -> float:
    images, readers = grades.shape
    table = pd.DataFrame(
        {
            "image": np.repeat(np.arange(images), readers),
            "reader": np.tile(np.arange(readers), images),
            "grade": grades.ravel(),
        }
    ).dropna()
    found = pingouin.intraclass_corr(table, "image", "reader", "grade", nan_policy="omit").set_index("Type")
    low, high = found.loc[kind, "CI95"]
    return {"ICC": found.loc[kind, "ICC"], "low": low, "high": high}[entry]


# What each value is: one call of one library.
VALUES = {
    "alpha_nominal": lambda g, q: alpha(g, q, "nominal"),
    "alpha_ordinal": lambda g, q: alpha(g, q, "ordinal"),
    "alpha_interval": lambda g, q: alpha(g, q, "interval"),
    "ac1": lambda g, q: irrcac(g, q, "identity", "gwet", "coefficient_value"),
    "ac2_quadratic": lambda g, q: irrcac(g, q, "quadratic", "gwet", "coefficient_value"),
    "ac2_quadratic_low": lambda g, q: irrcac(g, q, "quadratic", "gwet", "low"),
    "ac2_quadratic_high": lambda g, q: irrcac(g, q, "quadratic", "gwet", "high"),
    "ac2_ordinal": lambda g, q: irrcac(g, q, "ordinal", "gwet", "coefficient_value"),
    "ac2_linear": lambda g, q: irrcac(g, q, "linear", "gwet", "coefficient_value"),
    "fleiss": lambda g, q: irrcac(g, q, "identity", "fleiss", "coefficient_value"),
    "fleiss_low": lambda g, q: irrcac(g, q, "identity", "fleiss", "low"),
    "fleiss_high": lambda g, q: irrcac(g, q, "identity", "fleiss", "high"),
    "fleiss_quadratic": lambda g, q: irrcac(g, q, "quadratic", "fleiss", "coefficient_value"),
    "fleiss_complete": complete_fleiss,
    "exact": lambda g, q: irrcac(g, q, "identity", "fleiss", "pa"),
    "kappa_first_two": lambda g, q: pair_kappa(g, q, 0, 1, None),
    "kappa_first_two_linear": lambda g, q: pair_kappa(g, q, 0, 1, "linear"),
    "kappa_first_two_quadratic": lambda g, q: pair_kappa(g, q, 0, 1, "quadratic"),
    "kappa_mean": lambda g, q: mean_kappa(g, q, 1),
    "kappa_mean_of_ten_shared": lambda g, q: mean_kappa(g, q, 10),
    "icc_single": lambda g, q: icc(g, "ICC(A,1)", "ICC"),
    "icc_single_low": lambda g, q: icc(g, "ICC(A,1)", "low"),
    "icc_single_high": lambda g, q: icc(g, "ICC(A,1)", "high"),
    "icc_average": lambda g, q: icc(g, "ICC(A,k)", "ICC"),
    "icc_average_low": lambda g, q: icc(g, "ICC(A,k)", "low"),
    "icc_average_high": lambda g, q: icc(g, "ICC(A,k)", "high"),
}


def reference_value(function, grades: np.ndarray, num_grades: int) -> float | None:
    """The number, or None where the library raises or returns no finite one."""
    try:
        value = float(function(grades, num_grades))
    except Exception:  # noqa: BLE001 each library refuses degenerate data in its own way
        return None
    return value if math.isfinite(value) else None


def two_groups() -> dict:
    """45 and 60 images read by four readers; the first reader alone, and all with the reader as a stratum."""
    rng = np.random.default_rng(11)
    latent = np.r_[rng.normal(0.6, 1, 45), rng.normal(0.0, 1, 60)][:, None]
    grades = 1 + (latent + rng.logistic(0, 0.5, (105, 4)) + [0, 0.4, -0.3, 0.2] > [[[-0.5]], [[0.5]]]).sum(0)
    first, second = grades[:45], grades[45:]
    found = mannwhitneyu(first[:, 0], second[:, 0], use_continuity=False, method="asymptotic")
    is_first = np.r_[np.ones(45), np.zeros(60)]
    design = np.column_stack([np.repeat(is_first, 4), *(np.tile(np.arange(4) == j, 105) for j in (1, 2, 3))])
    fitted = OrderedModel(grades.ravel(), design.astype(float), distr="logit").fit(
        method="newton", disp=False, maxiter=200
    )
    above = [[np.sum(group[:, j] > 1) for group in (first, second)] for j in range(4)]
    tables = [np.array([[a, 45 - a], [b, 60 - b]]) for a, b in above]
    return {
        "num_first": 45,
        "grades": grades.tolist(),
        "superiority_of_first_reader": float(found.statistic) / (45 * 60),
        "p_value_of_first_reader": float(found.pvalue),
        "log_odds_ratio": float(fitted.params[0]),  # proportional odds, readers as fixed effects, statsmodels
        "odds_ratio_above_poor": float(StratifiedTable(tables).oddsratio_pooled),  # Mantel-Haenszel, statsmodels
    }


def wilson_values() -> list[dict]:
    cases = [(0, 5), (3, 10), (10, 10), (97, 120), (1, 1)]
    return [
        {"num": num, "total": total, "ends": list(map(float, proportion_confint(num, total, method="wilson")))}
        for num, total in cases
    ]


def main() -> None:
    pingouin.options["round"] = None
    for name in [name for name in pingouin.options if name.startswith("round.")]:
        pingouin.options[name] = None
    sets = {}
    for name, (num_grades, grades) in data_sets().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = {key: reference_value(function, grades, num_grades) for key, function in VALUES.items()}
        rows = [[0 if math.isnan(grade) else int(grade) for grade in row] for row in grades]
        sets[name] = {"num_grades": num_grades, "grades": rows, "values": values}
    golden = {
        "note": "Made by make_agreement_values.py, which says how. Grades 0: not rated. null: the library has none.",
        "versions": {name: version(name) for name in LIBRARIES},
        "data_sets": sets,
        "two_groups": two_groups(),
        "wilson": wilson_values(),
    }
    text = json.dumps(golden, indent=1)
    OUTPUT.write_text(_rows_on_one_line(text) + "\n")


def _rows_on_one_line(text: str) -> str:
    """Innermost lists of numbers on one line: a row of the table reads as one."""
    lines, inside = [], None
    for line in text.splitlines():
        if inside is None and line.endswith("["):
            inside = [line]
        elif inside is not None and line.strip().rstrip(",").endswith("["):
            lines += inside
            inside = [line]
        elif inside is not None:
            inside.append(line.strip())
            if line.strip() in ("]", "],"):
                lines.append(inside[0] + " ".join(inside[1:-1]) + inside[-1])
                inside = None
        else:
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
