"""Agreement against reference libraries, worked examples and the definitions; and what cannot be told is not told."""

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest

from ratings.agreement.coefficients import (
    agreement_report,
    agreement_weights,
    cohen_kappa,
    fleiss_kappa,
    gwet_ac,
    krippendorff_alpha,
    mean_pairwise_kappa,
    raw_agreement,
)
from ratings.agreement.estimate import Bootstrap, draw_weights, share_estimate
from ratings.agreement.intraclass import intraclass_correlation
from ratings.agreement.table import RatingTable

GOLDEN = json.loads((Path(__file__).parent / "golden" / "agreement.json").read_text())
DATA_SETS = GOLDEN["data_sets"]
DEGENERATE = ("one grade", "one grade, cells missing", "one reader", "no overlap", "one image")
FEW = Bootstrap(num_resamples=20)


def table_of(name: str) -> RatingTable:
    return RatingTable.from_matrix(np.array(DATA_SETS[name]["grades"]), num_grades=DATA_SETS[name]["num_grades"])


def first_two(table: RatingTable) -> RatingTable:
    return table.of_readers([0, 1])


def icc(table: RatingTable, form: str, part: str) -> float:
    return getattr(getattr(intraclass_correlation(table), form), part)


OURS = {
    "alpha_nominal": lambda t: krippendorff_alpha(t, level="nominal", bootstrap=FEW).estimate,
    "alpha_ordinal": lambda t: krippendorff_alpha(t, level="ordinal", bootstrap=FEW).estimate,
    "alpha_interval": lambda t: krippendorff_alpha(t, level="interval", bootstrap=FEW).estimate,
    "ac1": lambda t: gwet_ac(t, weights="identity", bootstrap=FEW).estimate,
    "ac2_quadratic": lambda t: gwet_ac(t, bootstrap=FEW).estimate,
    "ac2_ordinal": lambda t: gwet_ac(t, weights="ordinal", bootstrap=FEW).estimate,
    "ac2_linear": lambda t: gwet_ac(t, weights="linear", bootstrap=FEW).estimate,
    "fleiss": lambda t: fleiss_kappa(t, bootstrap=FEW).estimate,
    "fleiss_quadratic": lambda t: fleiss_kappa(t, weights="quadratic", bootstrap=FEW).estimate,
    "fleiss_complete": lambda t: fleiss_kappa(t, bootstrap=FEW).estimate,
    "exact": lambda t: raw_agreement(t, bootstrap=FEW).estimate,
    "kappa_first_two": lambda t: cohen_kappa(first_two(t), weights="identity", bootstrap=FEW).estimate,
    "kappa_first_two_linear": lambda t: cohen_kappa(first_two(t), weights="linear", bootstrap=FEW).estimate,
    "kappa_first_two_quadratic": lambda t: cohen_kappa(first_two(t), bootstrap=FEW).estimate,
    "kappa_mean": lambda t: mean_pairwise_kappa(t, min_shared=1, bootstrap=FEW).estimate,
    "kappa_mean_of_ten_shared": lambda t: mean_pairwise_kappa(t, bootstrap=FEW).estimate,
    "icc_single": lambda t: icc(t, "single", "estimate"),
    "icc_single_low": lambda t: icc(t, "single", "low"),
    "icc_single_high": lambda t: icc(t, "single", "high"),
    "icc_average": lambda t: icc(t, "average", "estimate"),
    "icc_average_low": lambda t: icc(t, "average", "low"),
    "icc_average_high": lambda t: icc(t, "average", "high"),
}
# Where a library's number is none to report: (data set, value) and why ours is None.
REFUSED = {
    ("contrary", "icc_average"): "5.0, outside of any meaning",
    ("contrary", "icc_average_low"): "of 5.0",
    ("contrary", "icc_average_high"): "of 5.0",
    ("contrary", "icc_single_low"): "an interval of no width",
    ("contrary", "icc_single_high"): "an interval of no width",
    ("two images", "icc_average_low"): "4.67, above the upper end: stepped up beyond the pole",
    ("two images", "icc_average_high"): "of 4.67",
}
CASES = {
    name: {key: value for key, value in data["values"].items() if key in OURS and value is not None}
    for name, data in DATA_SETS.items()
    if name not in DEGENERATE
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference_libraries(name):
    expected = {key: None if (name, key) in REFUSED else value for key, value in CASES[name].items()}
    found = {key: OURS[key](table_of(name)) for key in expected}
    wrong = {
        key: (found[key], value)
        for key, value in expected.items()
        if (value is None) != (found[key] is None) or value is not None and abs(found[key] - value) > 1e-6
    }
    assert wrong == {}


def test_the_golden_values_hold_what_they_shall():
    assert len(CASES) >= 12 and sum(map(len, CASES.values())) > 250
    assert DATA_SETS["Krippendorff"]["values"]["alpha_ordinal"] == pytest.approx(0.815, abs=5e-4)  # his book's
    assert DATA_SETS["Shrout and Fleiss"]["values"]["icc_single"] == pytest.approx(0.29, abs=5e-3)  # their paper's


@pytest.mark.parametrize("name", ["complete, 3 readers", "skewed, 90 % of one grade"])
@pytest.mark.parametrize(("key", "function"), [("ac2_quadratic", gwet_ac), ("fleiss", fleiss_kappa)])
def test_bootstrap_intervals_are_as_wide_as_gwets_analytic_ones(name, key, function):
    """irrCAC's interval comes from a linearised variance: another way to the same width. Complete tables only: with
    missing ratings that formula takes the number of comparable images as random beyond what it is."""
    values = DATA_SETS[name]["values"]
    ours = function(table_of(name), bootstrap=Bootstrap(num_resamples=4000, seed=1))
    analytic = values[key + "_high"] - values[key + "_low"]
    assert ours.high - ours.low == pytest.approx(analytic, rel=0.12)
    assert ours.low < ours.estimate < ours.high


def test_the_same_seed_gives_the_same_interval_in_whatever_blocks_it_is_drawn(monkeypatch):
    table = table_of("a quarter missing, 4 readers")
    whole = mean_pairwise_kappa(table, bootstrap=Bootstrap(num_resamples=300, seed=5))
    other = mean_pairwise_kappa(table, bootstrap=Bootstrap(num_resamples=300, seed=6))
    monkeypatch.setattr("ratings.agreement.estimate._CHUNK_CELLS", 1000)
    assert mean_pairwise_kappa(table, bootstrap=Bootstrap(num_resamples=300, seed=5)) == whole
    assert (other.low, other.high) != (whole.low, whole.high)


@pytest.mark.parametrize("copies", [1, 40])
def test_resampled_weights_have_the_moments_of_drawing_images(copies):
    """Both ways to draw, few images a row and many: mean n p and variance n p (1 - p) of a multinomial."""
    counts = copies * np.array([1, 2, 5])
    weights = draw_weights(counts, 20_000, np.random.default_rng(0))
    share = counts / counts.sum()
    assert weights.shape == (20_000, 3) and (weights.sum(1) == counts.sum()).all()
    assert weights.mean(0) == pytest.approx(counts, rel=0.02)
    assert weights.var(0) == pytest.approx(counts.sum() * share * (1 - share), rel=0.05)


@pytest.mark.slow
def test_the_interval_of_alpha_holds_the_truth_as_often_as_it_says():
    """200 studies of 150 images; the truth is alpha over 200,000 images of the same readers."""

    def study(seed, num_images):
        rng = np.random.default_rng(seed)
        latent = rng.choice(3, num_images, p=[0.2, 0.3, 0.5])[:, None]
        step = np.where(rng.random((num_images, 3)) < 0.7, 0, rng.choice([-1, 1], (num_images, 3)))
        return RatingTable.from_matrix(np.clip(latent + step, 0, 2) + 1)

    truth = krippendorff_alpha(study(10_000, 200_000), bootstrap=FEW).estimate
    found = [krippendorff_alpha(study(seed, 150), bootstrap=Bootstrap(num_resamples=400)) for seed in range(200)]
    coverage = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.90 <= coverage <= 0.985


# --- what cannot be told ---

COEFFICIENTS = {
    "alpha": krippendorff_alpha,
    "ac2": gwet_ac,
    "fleiss": fleiss_kappa,
    "kappa": mean_pairwise_kappa,
    "icc single": lambda t: intraclass_correlation(t).single,
    "icc average": lambda t: intraclass_correlation(t).average,
}


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one grade", "grade 3"),
        ("one grade, cells missing", "grade 2"),
        ("one reader", "Only one reader"),
        ("no overlap", "No image was rated by"),
        ("one image", "Only one image was rated by"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_told_is_none_with_the_reason(coefficient, name, words):
    found = COEFFICIENTS[coefficient](table_of(name))
    assert (found.estimate, found.low, found.high, found.method) == (None, None, None, "")
    assert words in found.reason and found.reason.endswith(".")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (4, 0), (4, 3)])
def test_no_ratings_at_all(shape):
    table = RatingTable.from_matrix(np.zeros(shape))
    for coefficient in COEFFICIENTS.values():
        assert coefficient(table).reason == "There are no ratings."
    assert raw_agreement(table).reason == "There are no ratings."


def test_the_reference_library_calls_one_grade_perfect_and_we_do_not():
    assert DATA_SETS["one grade"]["values"]["ac2_quadratic"] == 1.0
    assert gwet_ac(table_of("one grade")).estimate is None
    raw = raw_agreement(table_of("one grade"))
    assert raw.estimate == 1.0 and raw.low is None and "all alike" in raw.reason


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_a_further_grade_on_images_with_one_rating_makes_no_agreement(coefficient):
    """The images that two readers share are all grade 3: the single 1 beside them must not turn that into skill."""
    grades = np.array([[3, 3]] * 10 + [[1, 0], [0, 2]])
    found = COEFFICIENTS[coefficient](RatingTable.from_matrix(grades))
    assert found.estimate is None and "grade 3" in found.reason


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_gives_a_whole_report_without_a_warning(name):
    report = agreement_report(table_of(name), Bootstrap(num_resamples=200))
    figures = [getattr(report, field) for field in vars(report) if field not in ("histogram", "icc")]
    for figure in [*figures, report.icc.single, report.icc.average]:
        assert (figure.low is None) == (figure.high is None) == (figure.method == "")
        assert figure.reason or None not in (figure.estimate, figure.low)
        if figure.low is not None:
            assert figure.low <= figure.high
    assert sum(report.histogram) == int((table_of(name).grades > 0).sum())


def test_perfect_agreement_is_one_but_claims_no_certainty():
    """Every resample of six unanimous images is unanimous: an interval of [1, 1] would be a claim about more."""
    for coefficient in (krippendorff_alpha, gwet_ac, fleiss_kappa, raw_agreement):
        found = coefficient(table_of("perfect"))
        assert found.estimate == pytest.approx(1.0) and found.low is None and found.reason


def test_an_interval_is_refused_where_many_resamples_hold_one_grade_only():
    """One image of 20 differs: a resample misses it with probability (19/20)^20 = 0.36."""
    grades = np.full((20, 2), 3)
    grades[0] = (2, 3)
    found = gwet_ac(RatingTable.from_matrix(grades))
    assert found.estimate is not None and found.low is None and "not defined" in found.reason


def test_icc_says_which_images_it_left_out():
    found = intraclass_correlation(table_of("a quarter missing, 4 readers")).single
    grades = table_of("a quarter missing, 4 readers").grades
    complete = int((grades > 0).all(1).sum())
    assert (found.n_images, found.n_ratings) == (complete, 4 * complete)
    assert found.reason == f"{(grades > 0).any(1).sum() - complete} images not rated by all 4 readers left out."


def test_pairs_that_share_too_little_are_left_out_and_counted():
    table = table_of("ten readers, three an image")
    shared = [int((table.grades[:, [i, j]] > 0).all(1).sum()) for i, j in itertools.combinations(range(10), 2)]
    enough = int(np.median(shared))
    few = sum(number < enough for number in shared)
    assert 0 < few < 45
    found = mean_pairwise_kappa(table, min_shared=enough, bootstrap=FEW)
    assert found.reason.startswith(f"{few} of 45 pairs")
    assert mean_pairwise_kappa(table, min_shared=201, bootstrap=FEW).estimate is None


# --- definitions ---


def test_raw_agreement_counts_pairs_of_ratings():
    table = RatingTable.from_matrix(np.array([[1, 1, 2], [1, 3, 0], [3, 3, 3], [2, 0, 0]]))
    assert raw_agreement(table).estimate == pytest.approx((1 / 3 + 0 + 1) / 3)
    assert raw_agreement(table, weights="within one").estimate == pytest.approx((1 + 0 + 1) / 3)
    assert (raw_agreement(table).n_images, raw_agreement(table).n_ratings) == (3, 8)


def test_weights():
    assert agreement_weights("quadratic", 3).tolist() == [[1, 0.75, 0], [0.75, 1, 0.75], [0, 0.75, 1]]
    assert agreement_weights("linear", 3)[0].tolist() == [1, 0.5, 0]
    assert agreement_weights("ordinal", 3)[0] == pytest.approx([1, 2 / 3, 0])
    with pytest.raises(ValueError, match="quadratic"):
        agreement_weights("cubic", 3)


def test_alpha_falls_and_ac2_rises_where_one_grade_prevails():
    """METHOD section 10: readers who keep the latent grade with 85 % and are a step off else (none beyond the ends).

    With 90 % of one grade it has alpha .53 and AC2 .95, from .85 and .85 with even grades, at one raw agreement.
    """

    def readers(shares):
        rng = np.random.default_rng(0)
        latent = rng.choice(3, 20_000, p=shares)[:, None]
        step = np.where(rng.random((20_000, 3)) < 0.85, 0, rng.choice([-1, 1], (20_000, 3)))
        return RatingTable.from_matrix(np.clip(latent + step, 0, 2) + 1)

    even, skewed = readers([1 / 3] * 3), readers([0.1 / 3, 0.2 / 3, 0.9])
    assert raw_agreement(even, bootstrap=FEW).estimate == pytest.approx(0.82, abs=0.02)
    assert raw_agreement(skewed, bootstrap=FEW).estimate == pytest.approx(0.85, abs=0.02)
    assert krippendorff_alpha(even, bootstrap=FEW).estimate == pytest.approx(0.85, abs=0.02)
    assert krippendorff_alpha(skewed, bootstrap=FEW).estimate == pytest.approx(0.53, abs=0.03)
    assert gwet_ac(even, bootstrap=FEW).estimate == pytest.approx(0.85, abs=0.02)
    assert gwet_ac(skewed, bootstrap=FEW).estimate == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("case", GOLDEN["wilson"])
def test_wilson(case):
    found = share_estimate(case["num"], case["total"], n_ratings=case["total"], undefined="")
    assert (found.low, found.high) == pytest.approx(case["ends"], abs=1e-9)
    assert found.estimate == case["num"] / case["total"]


def test_a_share_of_nothing_is_undefined():
    found = share_estimate(0, 0, n_ratings=0, undefined="No gold image was rated.")
    assert found.estimate is None and found.reason == "No gold image was rated."


# --- the table ---


def test_a_table_from_single_ratings_in_any_order():
    table = RatingTable.from_ratings(["b", "a", "b"], [7, 8, 8], [1, 2, 3])
    assert (table.images, table.readers) == (("a", "b"), ("7", "8"))
    assert table.grades.tolist() == [[0, 2], [1, 3]]
    assert RatingTable.from_ratings([], [], []).grades.shape == (0, 0)


@pytest.mark.parametrize(
    ("images", "readers", "grades", "words"),
    [
        (["a", "a"], ["x", "x"], [1, 2], "Reader x rated image a 2 times"),
        (["a"], ["x"], [4], "reader x: grade 4"),
        (["a"], ["x"], [0], "grade 0"),
    ],
)
def test_ratings_that_make_no_table(images, readers, grades, words):
    with pytest.raises(ValueError, match=words):
        RatingTable.from_ratings(images, readers, grades)


def test_half_grades_are_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        RatingTable.from_matrix(np.array([[1.5, 2]]))


@pytest.mark.benchmark
def test_two_thousand_images_ten_readers_a_thousand_resamples():
    rng = np.random.default_rng(0)
    grades = rng.integers(1, 4, (2000, 10)) * (rng.random((2000, 10)) > 0.25)
    started = time.perf_counter()
    agreement_report(RatingTable.from_matrix(grades))
    assert time.perf_counter() - started < 3
