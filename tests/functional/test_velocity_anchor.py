"""The anchor: its weights, its gradient, and the measure that makes one default serve rewards of any scale."""

import pytest
import torch

from zr_ray.functional.velocity_anchor import anchor_loss, anchor_weights, gradient_size


def test_weights_change_at_the_cut():
    assert anchor_weights(torch.tensor([0.2, 0.49, 0.5, 1.0]), 0.5, 2.0, 0.2).tolist() == pytest.approx(
        [2, 2, 0.2, 0.2]
    )


def test_loss_by_hand_and_no_gradient_to_the_reference():
    velocity, reference = torch.tensor([[1.0, 3.0]], requires_grad=True), torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss = anchor_loss(velocity, reference)
    assert loss.item() == pytest.approx((1 + 4) / 2)
    loss.sum().backward()
    assert torch.allclose(velocity.grad, torch.tensor([[1.0, 2.0]])) and reference.grad is None


def test_relative_weights_balance_at_the_same_distance_for_any_scale_of_the_reward():
    """With weight lambda times the size, the anchor's gradient equals the reward's where rms(v - v_ref) = 1 / (2
    lambda)."""
    reward = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for scale in (1e-4, 1.0, 1e3):
        size, weight = gradient_size(scale * reward), 2.0
        away = reward / reward.square().mean().sqrt() / (2 * weight)
        velocity = away.clone().requires_grad_()
        (weight * size * anchor_loss(velocity, torch.zeros_like(away))).sum().backward()
        assert torch.allclose(velocity.grad, scale * reward, rtol=1e-4)
