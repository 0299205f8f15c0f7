"""Reading lists: orders and hidden repeats follow from the seed; repeats keep their distance; nothing given moves."""

import random
import statistics
import uuid
from collections import Counter

import pytest

from ratings.models import Assignment
from ratings.reading_list import REPEAT, Showing, extension, reading_order

KEYS = [uuid.UUID(int=n) for n in range(1200)]


def kinds_of(keys) -> dict:
    return {key: ("main", "calibration", "gold", "real")[key.int % 4] for key in keys}


def extend(showings: list[Showing], keys, *, seed=1, block=0, reader=1, **protocol) -> list[Showing]:
    """The list after another block; what the function is told of the list is read off the list."""
    repeated = {showing.image for showing in showings if showing.occurrence == 2}
    return showings + extension(
        order_seed=seed,
        reader_key=reader,
        block=block,
        kinds=kinds_of(keys),
        begins_at=len(showings),
        unrepeated={each.image: place for place, each in enumerate(showings) if each.image not in repeated},
        num_repeated=len(repeated),
        **protocol,
    )


def distances(showings: list[Showing]) -> list[int]:
    first = {each.image: place for place, each in enumerate(showings) if each.occurrence == 1}
    return [place - first[each.image] for place, each in enumerate(showings) if each.occurrence == 2]


def rank_correlation(first: list, second: list) -> float:
    place = {key: index for index, key in enumerate(second)}
    return statistics.correlation(range(len(first)), [place[key] for key in first])


def test_the_kind_of_a_second_showing_is_that_of_the_model():
    assert REPEAT == Assignment.Kind.REPEAT


def test_the_order_follows_from_the_seed_whatever_the_order_of_the_images():
    keys = KEYS[:200]
    shuffled = random.Random(1).sample(keys, len(keys))
    assert reading_order(5, 1, 0, keys) == reading_order(5, 1, 0, shuffled)
    assert sorted(reading_order(5, 1, 0, keys)) == keys
    assert extend([], keys, repeat_share=0.1) == extend([], shuffled, repeat_share=0.1)


@pytest.mark.parametrize("other", [(6, 1, 0), (5, 2, 0), (5, 1, 1)])
def test_orders_of_other_seeds_readers_and_blocks_are_independent(other):
    # Rank correlation of independent orders of n = 200: mean 0, standard deviation 1/sqrt(199) = 0.07.
    assert abs(rank_correlation(reading_order(5, 1, 0, KEYS[:200]), reading_order(*other, KEYS[:200]))) < 0.29


def test_every_order_is_equally_likely():
    orders = [tuple(reading_order(seed, 1, 0, KEYS[:3])) for seed in range(3000)]
    counts = [orders.count(order) for order in set(orders)]
    chi_square = sum((count - 500) ** 2 / 500 for count in counts)
    assert len(counts) == 6 and chi_square < 20.5  # 0.999 quantile with 5 degrees of freedom


def test_a_list_without_repeats_is_the_order():
    showings = extend([], KEYS[:50])
    assert [each.image for each in showings] == reading_order(1, 1, 0, KEYS[:50])
    assert showings[0] == Showing(showings[0].image, kinds_of(KEYS)[showings[0].image], 1)


def test_whatever_the_sizes_distance_number_and_places_hold():
    """A thousand lists of random blocks and protocols."""
    draw = random.Random(2026)
    for seed in range(1000):
        share, distance = draw.choice([0.05, 0.1, 0.25, 0.5]), draw.randint(1, 40)
        showings: list[Showing] = []
        given = 0
        for block in range(draw.randint(1, 5)):
            size = draw.choice([0, 1, 3, 20, 31, 60, 120])
            before = list(showings)
            keys = KEYS[given : given + size]
            showings = extend(showings, keys, seed=seed, block=block, repeat_share=share, repeat_distance=distance)
            given += size
            assert showings[: len(before)] == before
            firsts = [each.image for each in showings[len(before) :] if each.occurrence == 1]
            assert firsts == reading_order(seed, 1, block, keys)
        repeats = [each for each in showings if each.occurrence == 2]
        assert all(each.kind == REPEAT for each in repeats)
        assert max(Counter((each.image, each.occurrence) for each in showings).values(), default=1) == 1
        assert min(distances(showings), default=distance) >= distance
        assert len(repeats) <= round(share * given)


@pytest.mark.parametrize("size", [33, 40, 100, 333, 1000])
def test_a_block_that_is_long_enough_owes_nothing(size):
    for seed in range(20):
        showings = extend([], KEYS[:size], seed=seed, repeat_share=0.1, repeat_distance=30)
        assert len(distances(showings)) == round(0.1 * size)


def test_what_a_short_block_owes_comes_with_later_ones():
    showings: list[Showing] = []
    for block in range(10):
        keys = KEYS[20 * block : 20 * (block + 1)]
        showings = extend(showings, keys, block=block, repeat_share=0.1, repeat_distance=30)
        # After 20 images nothing can be repeated 30 places later, after 40 images the first ten can.
        assert len(distances(showings)) == (0 if block == 0 else 2 * (block + 1))
    assert len(showings) == 220


def test_repeats_lie_spread_over_the_list():
    """Of 1,000 images each tenth is repeated: about as many in each part of the list but the first, where nothing
    can be, and no row of them at the end."""
    counts, tails = Counter(), []
    for seed in range(30):
        showings = extend([], KEYS[:1000], seed=seed, repeat_share=0.1, repeat_distance=30)
        is_repeat = [each.occurrence == 2 for each in showings]
        assert not any(is_repeat[:30])
        assert not any(one and other for one, other in zip(is_repeat[:-10], is_repeat[1:-10], strict=False))
        counts.update(place // 110 for place, is_second in enumerate(is_repeat) if is_second)
        tails.append(sum(is_repeat[-5:]))
    assert all(220 < counts[part] < 400 for part in range(1, 10))  # 300 expected, standard deviation about 17
    assert statistics.mean(tails) < 2.5


def test_repeats_are_drawn_among_all_kinds_and_all_images_that_can_be():
    chosen = Counter(
        each.image.int
        for seed in range(300)
        for each in extend([], KEYS[:100], seed=seed, repeat_share=0.2, repeat_distance=10)
        if each.occurrence == 2
    )
    assert len(chosen) == 100  # each image 60 times on average, standard deviation 7
    assert all(30 < times < 95 for times in chosen.values())
    by_kind = Counter()
    for number, times in chosen.items():
        by_kind[number % 4] += times
    assert max(by_kind.values()) / min(by_kind.values()) < 1.2


def test_repeats_differ_between_readers():
    def repeated(reader):
        return {
            each.image for each in extend([], KEYS[:300], reader=reader, repeat_share=0.1) if each.occurrence == 2
        }

    assert len(repeated(1) & repeated(2)) < 12  # 30 of 300 each: 3 in common are expected
