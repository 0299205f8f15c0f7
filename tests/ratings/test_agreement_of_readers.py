"""One reader against the own repeats, the panel and gold images."""

import json
from pathlib import Path

import numpy as np
import pytest

from ratings.agreement.coefficients import cohen_kappa
from ratings.agreement.estimate import Bootstrap, share_estimate
from ratings.agreement.readers import against_panel, against_truth, intra_reader
from ratings.agreement.table import RatingTable

DATA_SETS = json.loads((Path(__file__).parent / "golden" / "agreement.json").read_text())["data_sets"]


def repeats_of(name: str, reader: str = "x") -> list[tuple]:
    """A golden pair of columns as first and second ratings: (image, reader, grade, occurrence)."""
    rows = DATA_SETS[name]["grades"]
    return [(str(i), reader, row[j], j + 1) for i, row in enumerate(rows) for j in (0, 1) if row[j]]


# --- repeats ---


def test_repeats_are_the_golden_kappa_whatever_the_order_of_the_ratings():
    entries = repeats_of("two readers, missing")
    np.random.default_rng(0).shuffle(entries)
    images, readers, grades, occurrences = zip(*entries, strict=True)
    report = intra_reader(images, readers, [int(g) for g in grades], [int(o) for o in occurrences])
    (only,) = report.readers
    values = DATA_SETS["two readers, missing"]["values"]
    both = [row for row in DATA_SETS["two readers, missing"]["grades"] if all(row)]
    assert only.reader == "x"
    assert only.kappa.estimate == pytest.approx(values["kappa_first_two_quadratic"], abs=1e-6)
    assert only.kappa.low < only.kappa.estimate < only.kappa.high
    assert only.exact.estimate == pytest.approx(values["exact"], abs=1e-6)
    assert (only.exact.n_images, only.exact.n_ratings) == (len(both), 2 * len(both))
    assert only.within_one.estimate == sum(abs(a - b) <= 1 for a, b in both) / len(both)


def test_the_mean_over_readers_is_the_mean_of_their_kappas():
    entries = repeats_of("two readers", "x") + repeats_of("two readers, missing", "y")
    report = intra_reader(*zip(*entries, strict=True))
    kappas = [each.kappa.estimate for each in report.readers]
    assert report.mean_kappa.estimate == pytest.approx(np.mean(kappas))
    widths = [each.kappa.high - each.kappa.low for each in report.readers]
    # Repeats of two readers on images that have nothing in common: variances add.
    assert report.mean_kappa.high - report.mean_kappa.low == pytest.approx(np.hypot(*widths) / 2, rel=0.12)


def test_a_hundred_repeats_give_kappa_to_a_tenth():
    """METHOD section 8: about 100 repeats a reader, half-width .10 (in this mixture of grades)."""
    rng = np.random.default_rng(2)
    latent = rng.choice(3, 100, p=[0.1, 0.2, 0.7])[:, None]
    step = np.where(rng.random((100, 2)) < 0.85, 0, rng.choice([-1, 1], (100, 2)))
    grades = np.clip(latent + step, 0, 2) + 1
    entries = [(str(i), "x", grades[i, j], j + 1) for i in range(100) for j in (0, 1)]
    kappa = intra_reader(*zip(*entries, strict=True)).readers[0].kappa
    assert (kappa.high - kappa.low) / 2 == pytest.approx(0.10, abs=0.04)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], None),
        ([("a", "x", 1, 1)], None),
        ([("a", "x", 1, 1), ("b", "x", 1, 2)], "rated no image twice"),
        ([("a", "y", 1, 1), ("a", "x", 1, 2)], "rated no image twice"),
        ([("a", "x", 1, 1), ("a", "x", 1, 2)], "Only one image"),
        ([(i, "x", 2, o) for i in "abc" for o in (1, 2)], "grade 2"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_repeats_that_tell_nothing(entries, words):
    report = intra_reader(*(zip(*entries, strict=True) if entries else ([], [], [], [])))
    assert report.mean_kappa.estimate is None and report.mean_kappa.reason
    assert len(report.readers) == (words is not None)
    if words:
        assert report.readers[0].kappa.estimate is None and words in report.readers[0].kappa.reason


def test_one_occurrence_rated_twice_is_an_error():
    with pytest.raises(ValueError, match="2 times"):
        intra_reader(["a", "a"], ["x", "x"], [1, 2], [2, 2])


# --- the panel ---


def panel_by_hand(grades: np.ndarray, reader: int, min_others: int):
    """Majorities and means of the others, image by image, in plain Python."""
    pairs, differences = [], []
    for row in grades:
        others = [grade for number, grade in enumerate(row) if number != reader and grade]
        if not row[reader] or len(others) < min_others:
            continue
        differences.append(row[reader] - sum(others) / len(others))
        votes = sorted((others.count(grade) for grade in (1, 2, 3)), reverse=True)
        if votes[0] > votes[1]:
            pairs.append((max((1, 2, 3), key=others.count), row[reader]))
    return pairs, differences


@pytest.mark.parametrize("min_others", [1, 2, 3])
def test_each_reader_against_the_others_without_the_own_vote(min_others):
    grades = np.array(DATA_SETS["a quarter missing, 4 readers"]["grades"])
    found = against_panel(RatingTable.from_matrix(grades), min_others=min_others)
    for reader, each in enumerate(found):
        pairs, differences = panel_by_hand(grades, reader, min_others)
        assert sum(map(sum, each.confusion)) == len(pairs) == each.exact.n_images
        assert each.exact.estimate == np.mean([a == b for a, b in pairs])
        assert each.bias.estimate == pytest.approx(np.mean(differences))
        assert each.bias.low < each.bias.estimate < each.bias.high
        assert each.kappa == cohen_kappa(RatingTable.from_matrix(np.array(pairs)))
        assert each.confusion[2][1] == pairs.count((3, 2))


def test_a_reader_who_is_a_grade_milder_stands_out():
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 3, 200)
    grades = np.stack([truth, truth, truth, truth + 1], 1)
    mild = against_panel(RatingTable.from_matrix(grades))[3]
    assert mild.bias.estimate == 1 and mild.exact.estimate == 0 and mild.exact.high < 0.03
    assert mild.confusion == ((0, int((truth == 1).sum()), 0), (0, 0, int((truth == 2).sum())), (0, 0, 0))


@pytest.mark.filterwarnings("error")
def test_without_a_panel_there_is_no_comparison():
    for table in (RatingTable.from_matrix(np.array([[1, 2], [3, 3]])), RatingTable.from_matrix(np.zeros((3, 2)))):
        for each in against_panel(table):
            for figure in (each.exact, each.kappa, each.bias):
                assert figure.estimate is None and "no image on which a majority" in figure.reason
    assert against_panel(RatingTable.from_matrix(np.zeros((0, 0)))) == ()


# --- gold ---


def test_gold_accuracy_with_wilson_interval_and_confusion():
    truth = np.array([1, 2, 3, 3, 0, 2])
    grades = np.array([[1, 0], [2, 0], [2, 0], [3, 0], [1, 3], [0, 0]])
    one, other = against_truth(RatingTable.from_matrix(grades), truth)
    assert one.exact == share_estimate(3, 4, n_ratings=4, undefined="")
    assert one.confusion == ((1, 0, 0), (0, 1, 0), (0, 1, 1))
    assert one.bias.estimate == -0.25
    assert other.exact.estimate is None and other.exact.reason == "Reader 1 has rated no image of known grade."


@pytest.mark.parametrize("truth", [[1, 2], [1, 2, 4], [1, -1, 2]])
def test_gold_that_does_not_fit_is_refused(truth):
    with pytest.raises(ValueError, match="0 to 3"):
        against_truth(RatingTable.from_matrix(np.ones((3, 2))), np.array(truth))


def test_the_bias_interval_is_that_of_a_mean():
    rng = np.random.default_rng(3)
    truth = rng.integers(1, 4, 400)
    own = np.clip(truth + rng.integers(-1, 2, 400), 1, 3)
    table = RatingTable.from_matrix(own[:, None])
    (found,) = against_truth(table, truth, bootstrap=Bootstrap(num_resamples=4000))
    normal = 2 * 1.96 * (own - truth).std() / 20
    assert found.bias.high - found.bias.low == pytest.approx(normal, rel=0.08)
