"""Gradient methods: which steps are chosen, surrogate weights against the full sum, clipping to the median, the
hinge."""

import pytest
import torch

from zr_ray.functional.reward_gradient import (
    balanced_sum,
    candidate_steps,
    clip_to_median,
    hinge_weights,
    spread_steps,
    surrogate_weights,
)

SIGMAS = torch.tensor([1.0, 0.947, 0.882, 0.8, 0.692, 0.545, 0.333, 0.0, 0.0])


def test_candidates_are_the_steps_at_high_noise_that_move():
    assert candidate_steps(SIGMAS, 0.5) == [0, 1, 2, 3, 4, 5]
    assert candidate_steps(SIGMAS, 0.0) == [0, 1, 2, 3, 4, 5, 6]  # the last call of the schedule goes from 0 to 0
    with pytest.raises(ValueError, match="at least 1.1"):
        candidate_steps(SIGMAS, 1.1)


def test_chosen_steps_are_spread_and_each_is_met():
    met = [spread_steps([0, 1, 2, 3, 4, 5], 2, torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert all(low in (0, 1, 2) and high in (3, 4, 5) for low, high in met)
    assert {step for pair in met for step in pair} == {0, 1, 2, 3, 4, 5}
    with pytest.raises(ValueError, match=r"1\.\.2"):
        spread_steps([0, 1], 3, torch.Generator())


def test_euler_weights_average_to_the_gradient_through_all_candidates():
    candidates = candidate_steps(SIGMAS, 0.5)
    total = torch.zeros(8)
    draws = [(low, high) for low in (0, 1, 2) for high in (3, 4, 5)]
    for chosen in draws:
        total[list(chosen)] += surrogate_weights(SIGMAS, candidates, list(chosen), "euler") / len(draws)
    assert torch.allclose(total[:6], SIGMAS.diff()[:6], atol=1e-6) and total[6:].abs().max() == 0


def test_lagrange_weights_are_exact_for_velocities_that_are_polynomials():
    candidates = candidate_steps(SIGMAS, 0.5)
    weights = surrogate_weights(SIGMAS, candidates, [1, 4], "lagrange")
    for velocity in (torch.ones(9), 2 - 3 * SIGMAS):
        whole = (SIGMAS.diff()[candidates] * velocity[candidates]).sum()
        assert torch.allclose((weights * velocity[[1, 4]]).sum(), whole, atol=1e-6)


def test_clip_to_median_touches_only_what_is_above_it():
    gradients = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, -28.0], [torch.nan, 1.0]])
    clipped, metrics = clip_to_median(gradients)
    assert torch.allclose(clipped, torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, -3.0], [0.0, 0.0]]))
    assert metrics["gradient/median_norm"] == 3.0 and metrics["gradient/largest_to_median"] == pytest.approx(28 / 3)
    assert clip_to_median(torch.zeros(2, 2))[0].abs().max() == 0


def test_hinge_stops_rewards_that_are_good_enough():
    assert hinge_weights(torch.tensor([1.0, 3.0]), 2.0).tolist() == [1, 0]
    assert hinge_weights(torch.tensor([1.0, 3.0]), None).tolist() == [1, 1]


def test_balanced_by_hand():
    """Norms 3 and 1, weights 1 and 2: c = (1 * 3 + 2 * 1) / 3, so the parts have the sizes 5/3 and 10/3."""
    steep, flat = torch.tensor([3.0, 0.0]), torch.tensor([0.0, -1.0])
    made, metrics = balanced_sum(torch.stack([steep, flat])[None], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(made, torch.tensor([[5 / 3, -10 / 3]]))
    assert metrics["gradient/largest_share"] == pytest.approx(3 / 5)


def test_a_scores_unit_does_not_matter_but_for_the_common_size():
    gradients = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    weights, units = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([1.0, 100.0, 0.01])
    plain, scaled = (balanced_sum(g, weights)[0] for g in (gradients, gradients * units.view(3, 1, 1)))
    torch.testing.assert_close(scaled / scaled.norm(), plain / plain.norm())
    one = gradients[:, :1]
    torch.testing.assert_close(balanced_sum(one, torch.tensor([2.0]))[0], 2 * one[:, 0])


def test_balance_is_over_the_batch_and_over_all_ranks():
    """A sample keeps its own size beside others; two ranks that know all norms make what one makes."""
    gradients = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    gradients[0] *= 5
    weights, norms = torch.tensor([1.0, 3.0]), gradients.flatten(2).norm(dim=2)
    whole, _ = balanced_sum(gradients, weights)
    shares = [balanced_sum(gradients[i : i + 2], weights, norms)[0] for i in (0, 2)]
    torch.testing.assert_close(torch.cat(shares), whole)
    size = norms.square().mean(0).sqrt()
    common = (weights * size).sum() / weights.sum()
    torch.testing.assert_close(whole, sum(weights[d] * common / size[d] * gradients[:, d] for d in range(2)))


def test_what_cannot_be_balanced_takes_no_part():
    gradients = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(2))
    silent = gradients * torch.tensor([1.0, 0.0]).view(2, 1)
    torch.testing.assert_close(balanced_sum(silent, torch.ones(2))[0], gradients[:, 0])
    lost = gradients.clone()
    lost[1, 0, 2] = torch.nan
    made, _ = balanced_sum(lost, torch.ones(2))
    torch.testing.assert_close(made[[0, 2]], balanced_sum(gradients[[0, 2]], torch.ones(2))[0])
    assert not made[1].any() and not balanced_sum(gradients * 0, torch.ones(2))[0].any()
    with pytest.raises(ValueError, match=r"weights must be \[D\]"):
        balanced_sum(gradients, torch.ones(3))
