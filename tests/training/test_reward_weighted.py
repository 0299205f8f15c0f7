"""The mixed data order and the objective of a generator update."""

import numpy as np
import pytest
import torch

from training.finetuning.batches import DataOrder
from training.finetuning.reward_weighted import MixedOrder, halves_of, mix


class Examples:
    """What `mix` looks at of cached examples."""

    def __init__(self, num_rows: int) -> None:
        self.rows = list(range(num_rows))
        self.order = DataOrder(tuple(index % 2 == 0 for index in range(num_rows)), seed=3, caption_dropout=0.1)
        self.weights = None


def test_every_batch_is_half_real_and_every_image_comes_as_often_as_its_neighbours():
    order = MixedOrder(DataOrder((True,) * 5, 1, 0.1), DataOrder((True,) * 3, 2, 0.1))
    rows = [order.draw(position).row for position in range(60)]
    assert all(row < 5 for row in rows[0::2]) and all(5 <= row < 8 for row in rows[1::2])
    assert np.bincount(rows).tolist() == [6] * 5 + [10] * 3


def test_the_order_is_a_function_of_the_position_alone():
    examples = mix(Examples(10), num_real=6, weights=[1.0] * 4)
    forwards = [examples.order.draw(position) for position in range(40)]
    assert [examples.order.draw(position) for position in reversed(range(40))] == forwards[::-1]


def test_the_halves_drop_captions_and_mirror_independently():
    order = mix(Examples(40), num_real=20, weights=[1.0] * 20).order
    real = [order.real.draw(number).dropped for number in range(400)]
    synthetic = [order.synthetic.draw(number).dropped for number in range(400)]
    assert real != synthetic
    assert not any(order.draw(position).flipped for position in range(200) if order.draw(position).row % 2)


def test_weights_count_by_their_proportions_and_leave_real_images_alone():
    mixed = mix(Examples(5), num_real=2, weights=[1.0, 2.0, 3.0])
    assert mixed.weights == pytest.approx([1, 1, 0.5, 1, 1.5])


def test_unwanted_images_keep_their_sign():
    assert mix(Examples(5), num_real=2, weights=[2, -2, -2]).weights == pytest.approx([1, 1, 1, -1, -1])


def test_mixing_leaves_the_given_examples_as_they_are():
    examples = Examples(5)
    mix(examples, num_real=2, weights=[1.0] * 3)
    assert isinstance(examples.order, DataOrder) and examples.weights is None


@pytest.mark.parametrize(("num_real", "weights"), [(0, [1.0] * 5), (5, []), (2, [1.0, 1.0]), (2, [1.0, 0.0, 1.0])])
def test_a_mixture_that_is_none_is_refused(num_real, weights):
    with pytest.raises(ValueError, match="images"):
        mix(Examples(5), num_real=num_real, weights=weights)


def test_the_objective_is_the_sum_of_both_expectations():
    losses, weights = torch.tensor([1.0, 10.0, 3.0, 20.0]), torch.tensor([9.0, 0.5, 9.0, 1.5])
    real, synthetic = halves_of(losses, weights)
    assert real == pytest.approx((1 + 3) / 2)
    assert synthetic == pytest.approx((0.5 * 10 + 1.5 * 20) / 2)


def test_an_odd_batch_has_no_halves():
    with pytest.raises(ValueError, match="two equal halves"):
        halves_of(torch.ones(3), torch.ones(3))
