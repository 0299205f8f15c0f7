"""Wilson's interval against SciPy's, at its ends, and where there is none."""

import pytest
from scipy.stats import binomtest

from generation.scoring.gate_plan import share_estimate
from medsyn.intervals import wilson
from ratings.agreement.estimate import share_estimate as rated_share
from training.evaluation.intervals import wilson as evaluated_share

COUNTS = [(num, total) for total in (1, 2, 9, 40) for num in range(total + 1)] + [(1, 5000), (4871, 5000)]


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_it_is_scipys(confidence):
    for num, total in COUNTS:
        assert all(type(end) is float for end in wilson(num, total, confidence))
        expected = binomtest(num, total).proportion_ci(confidence, method="wilson")
        assert wilson(num, total, confidence) == pytest.approx(tuple(expected), abs=1e-14)


def test_none_and_all_have_an_end_of_their_own():
    assert wilson(0, 7)[0] == 0 and wilson(7, 7)[1] == 1
    assert wilson(1, 10**9)[0] > 0 and wilson(10**9 - 1, 10**9)[1] < 1


@pytest.mark.parametrize(("num", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_what_is_no_share_is_refused(num, total):
    with pytest.raises(ValueError, match=f"{num} of {total} is no share"):
        wilson(num, total)


def test_every_figure_of_a_share_has_the_same_interval():
    for num, total in COUNTS:
        rated = rated_share(num, total, n_ratings=total, undefined="")
        for found in (share_estimate(num, total), evaluated_share(num, total), rated):
            assert (found.low, found.high) == wilson(num, total)
    wide = rated_share(3, 9, n_ratings=9, undefined="", confidence=0.99)
    assert (wide.low, wide.high) == wilson(3, 9, 0.99)
