"""Which images are chosen to be rated next: formulas against slow ones, quotas, spread, reproduction."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from ratings.reading_list import proportional_quotas
from training.rlhf.reading_list import Mix, Reason, bald, choose_batch, entropy, farthest_first, standardised

RNG = np.random.default_rng(5)
KINDS = ["oct"] * 60 + ["fundus"] * 30 + ["chest_ct"] * 10
HEADS = RNG.uniform(0.05, 0.95, (100, 5))
POINTS = RNG.normal(size=(100, 4))


def mutual_information(row) -> float:
    """I(verdict; head), heads equally likely, summed over the joint distribution: sum p(y, k) ln p(y, k)/p(y)p(k)."""
    total = 0.0
    for verdict in (0, 1):
        joint = [(p if verdict else 1 - p) / len(row) for p in row]
        marginal = sum(joint)
        total += sum(one * math.log(one / (marginal / len(row))) for one in joint if one > 0)
    return total


def test_bald_is_the_mutual_information_of_verdict_and_head():
    assert bald(HEADS) == pytest.approx([mutual_information(row) for row in HEADS])


def test_heads_that_agree_tell_nothing_and_opposite_ones_a_whole_bit():
    assert bald(np.full((1, 4), 0.5)) == pytest.approx([0])
    assert bald(np.array([[0.0, 1.0]])) == pytest.approx([math.log(2)])
    assert entropy(np.array([0.5, 0.0])) == pytest.approx([math.log(2), 0], abs=1e-9)


def test_farthest_first_against_the_definition():
    candidates, near = np.arange(10, 60), np.array([0, 1])
    chosen = farthest_first(POINTS, candidates, 8, near)
    centres = list(near)
    for item in chosen:
        distances = {
            int(other): min(math.dist(POINTS[other], POINTS[centre]) for centre in centres)
            for other in candidates
            if other not in centres
        }
        assert distances[item] == pytest.approx(max(distances.values()))
        centres.append(item)
    assert farthest_first(POINTS, candidates, 1, np.array([], dtype=int)) == [10]


def test_farthest_first_takes_equal_points_too_but_none_twice():
    same = np.zeros((5, 2))
    assert sorted(farthest_first(same, np.arange(5), 5, np.array([], dtype=int))) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="6 are to be chosen from 5"):
        farthest_first(same, np.arange(5), 6, np.array([], dtype=int))


def test_a_batch_has_its_shares_and_no_image_twice():
    picks = choose_batch(KINDS, bald(HEADS), POINTS, mix=Mix(30), seed=1)
    assert Counter(pick.reason for pick in picks) == {Reason.RANDOM: 12, Reason.MODEL: 16, Reason.EXPLORING: 2}
    assert len({pick.item for pick in picks}) == 30


def test_model_picks_have_the_kinds_in_proportion_and_the_greatest_disagreement():
    mix = Mix(20, random_share=0, exploring_share=0)
    picks = [pick.item for pick in choose_batch(KINDS, bald(HEADS), POINTS, mix=mix, seed=1)]
    assert Counter(KINDS[item] for item in picks) == {"oct": 12, "fundus": 6, "chest_ct": 2}
    information = bald(HEADS)
    # 20 % of a kind are exactly as many as are chosen of it, so the choice is the kind's greatest values.
    for kind in set(KINDS):
        own = sorted((item for item in range(100) if KINDS[item] == kind), key=lambda item: -information[item])
        assert set(own[: len(own) // 5]) == {item for item in picks if KINDS[item] == kind}


def test_model_picks_come_from_the_shortlist_and_are_spread_over_it():
    mix = Mix(10, random_share=0, exploring_share=0)
    picks = [pick.item for pick in choose_batch(["oct"] * 100, bald(HEADS), POINTS, mix=mix, seed=1)]
    shortlist = sorted(range(100), key=lambda item: -bald(HEADS)[item])[:20]
    assert set(picks) < set(shortlist) and picks[0] == shortlist[0]
    points = standardised(POINTS)

    def reach(chosen) -> float:
        """The greatest distance of a shortlisted image from the nearest chosen one."""
        return max(min(math.dist(points[item], points[one]) for one in chosen) for item in shortlist)

    assert reach(picks) < reach(shortlist[:10])  # the ten greatest values, however alike


def test_the_random_part_is_uniform_and_knows_nothing_of_the_model():
    others = choose_batch(KINDS, bald(HEADS[::-1]), POINTS[::-1], mix=Mix(30), seed=1)
    picks = choose_batch(KINDS, bald(HEADS), POINTS, mix=Mix(30), seed=1)
    assert picks[:12] == others[:12] and picks[12:] != others[12:]
    drawn = Counter(
        pick.item
        for seed in range(400)
        for pick in choose_batch(KINDS, bald(HEADS), POINTS, mix=Mix(10, random_share=1), seed=seed)
    )
    expected = 400 * 10 / 100
    squares = sum((drawn[item] - expected) ** 2 / expected for item in range(100))
    assert squares < 148  # chi-squared with 99 degrees of freedom, one in a thousand


def test_the_same_seed_and_pool_give_the_same_batch_and_another_seed_another():
    first, again, other = (choose_batch(KINDS, bald(HEADS), POINTS, mix=Mix(30), seed=seed) for seed in (3, 3, 4))
    assert first == again and first != other


@pytest.mark.parametrize("number", [1, 7, 99, 100])
def test_any_size_of_batch_fits(number):
    picks = choose_batch(KINDS, bald(HEADS), POINTS, mix=Mix(number), seed=2)
    assert len({pick.item for pick in picks}) == number


def test_quotas_never_exceed_the_pool():
    for sizes in itertools.product((1, 2, 5), repeat=3):
        kinds = dict(zip("abc", sizes, strict=True))
        for number in range(sum(sizes) + 1):
            quotas = proportional_quotas(number, kinds)
            assert sum(quotas.values()) == number and all(quotas[kind] <= kinds[kind] for kind in kinds)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Mix(0), "at least 1"),
        (lambda: Mix(5, random_share=1.2), "random_share is 1.2"),
        (lambda: Mix(5, shortlist_share=0), "nothing to choose from"),
        (lambda: choose_batch(KINDS, bald(HEADS), POINTS, mix=Mix(101), seed=0), "The pool has 100 images; 101"),
        (lambda: choose_batch(KINDS, bald(HEADS[:5]), POINTS, mix=Mix(2), seed=0), "5 values"),
    ],
)
def test_what_cannot_be_chosen_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()
