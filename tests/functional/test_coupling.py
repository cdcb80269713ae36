"""Trace swapping by hand: a judge that reads only the trace, one that reads only the image, and one in between."""

import math

import pytest
import torch

from zr_ray.functional.coupling import trace_following


def pairs(weight, count=40, seed=0):
    """Scores of a judge that takes `weight` of its score from the trace and the rest from the image."""
    generator = torch.Generator().manual_seed(seed)
    own = 1 + 4 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return own, weight * own.flip(1) + (1 - weight) * own, torch.arange(count) // 2


@pytest.mark.parametrize(("weight", "order"), [(1.0, 1.0), (0.0, 0.0), (0.75, 1.0), (0.25, 0.0)])
def test_follow_is_the_weight_of_the_trace(weight, order):
    found = trace_following(*pairs(weight))
    assert found["follow"] == pytest.approx(weight) and found["order_follows"] == order
    assert found["follow_ci"] == pytest.approx([weight, weight])
    own, _, _ = pairs(weight)
    gap = (own[:, 0] - own[:, 1]).abs().mean().item()
    assert found["trace_effect"] == pytest.approx(weight * gap) and found["image_effect"] == pytest.approx(
        (1 - weight) * gap
    )


def test_by_hand_with_a_malformed_pair_and_a_tie():
    own = torch.tensor([[4.0, 2.0], [3.0, 3.0], [math.nan, 2.0]])
    swapped = torch.tensor([[3.0, 3.5], [3.5, 3.0], [2.0, 2.0]])
    found = trace_following(own, swapped, torch.tensor([0, 1, 2]))
    # moves asked for: -2, +2, 0, 0; made: -1, +1.5, .5, 0
    assert found["follow"] == pytest.approx((2 + 3) / 8) and found["pairs"] == 2
    assert found["order_follows"] == 1.0  # one pair with an order: 3.0 < 3.5 after the swap
    assert found["trace_effect"] == pytest.approx(3 / 4)


def test_nothing_to_measure():
    empty = trace_following(torch.empty(0, 2), torch.empty(0, 2), torch.empty(0, dtype=torch.long))
    assert empty["follow"] is None and empty["follow_ci"] is None and empty["pairs"] == 0
    with pytest.raises(ValueError, match=r"\[M, 2\]"):
        trace_following(torch.zeros(3), torch.zeros(3), torch.zeros(3))
