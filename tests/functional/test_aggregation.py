"""Rewards by hand, their gradients, and the one-hot corner of sigma."""

import pytest
import torch

from zr_ray.functional.aggregation import aggregate_reward, score_deviation

BINS = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
Q = torch.tensor([[[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]], [[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]]], dtype=torch.float64)


def test_reward_by_hand():
    log_q = Q.log()
    # mu = [[3, 3], [3, 5]], sigma = [[2, 0], [sqrt 2, 0]]
    torch.testing.assert_close(
        score_deviation(log_q, BINS), torch.tensor([[2, 1e-6], [2**0.5, 1e-6]], dtype=torch.float64)
    )
    torch.testing.assert_close(
        aggregate_reward(log_q, BINS, torch.tensor([1.0, 2.0])), torch.tensor([9.0, 13.0], dtype=torch.float64)
    )
    got = aggregate_reward(log_q, BINS, torch.tensor([[1.0, 0.0], [2.0, -1.0]]), risk=0.5)
    torch.testing.assert_close(got, torch.tensor([2.0, 2 * (3 - 0.5 * 2**0.5) - 5 + 0.5e-6], dtype=torch.float64))


def test_gradient_is_exact_and_finite_at_certainty():
    logits = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.tensor([[0.5, 1.5], [1.0, -2.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: aggregate_reward(x.log_softmax(-1), BINS, weights, 0.7), (logits,))
    certain = torch.tensor([[[0.0, 800.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    aggregate_reward(certain.log_softmax(-1), BINS, torch.ones(1), 1.0).sum().backward()
    assert certain.grad.isfinite().all()


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="weights must be"):
        aggregate_reward(Q.log(), BINS, torch.ones(3))
    with pytest.raises(ValueError, match="risk must be at least 0"):
        aggregate_reward(Q.log(), BINS, torch.ones(2), risk=float("nan"))
