"""Flow-GRPO: ratio exactly 1 where nothing has changed, the clip's sides, GRPO-Guard's correction, the KL against its
definition."""

import pytest
import torch

from zr_ray.functional.flow import sde_step, step_log_density
from zr_ray.functional.flow_grpo import clipped_terms, guarded_log_ratio, step_kl


def test_ratio_is_exactly_one_and_the_gradient_is_the_policy_gradient():
    random = torch.Generator().manual_seed(0)
    x, v, reached = torch.randn(3, 5, 4, 2, 2, generator=random)
    sigmas, after = torch.linspace(0.9, 0.5, 5), torch.linspace(0.8, 0.4, 5)
    mean, std = sde_step(x, v, sigmas, after, "flow", 0.7, 0.95)
    old = step_log_density(reached, mean, std)
    velocity = v.clone().requires_grad_()
    mean, std = sde_step(x, velocity, sigmas, after, "flow", 0.7, 0.95)
    new = step_log_density(reached, mean, std)
    advantages = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    terms, metrics = clipped_terms(new - old, advantages, 1e-4)
    assert metrics == {"policy/ratio_max_abs_diff": 0.0, "policy/clip_frac": 0.0}
    assert torch.equal(terms, -advantages)
    (got,) = torch.autograd.grad(terms.sum(), velocity, retain_graph=True)
    (wanted,) = torch.autograd.grad(-(advantages * new).sum(), velocity)
    assert torch.allclose(got, wanted)


def test_the_clip_takes_the_gradient_of_the_outer_side_only():
    """A > 0 and rho above the range, A < 0 and rho below it: no gradient. The other two keep theirs."""
    log_ratio = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    terms, metrics = clipped_terms(log_ratio, torch.tensor([1.0, -1.0, -1.0, 1.0]), 0.1)
    terms.sum().backward()
    assert (log_ratio.grad != 0).tolist() == [False, False, True, True]
    assert metrics["policy/clip_frac"] == 0.5
    assert terms[0].item() == pytest.approx(-1.1) and terms[1].item() == pytest.approx(0.9)


def test_guard_centers_the_log_ratio_and_gives_all_steps_one_spread():
    """Under the old policy log p - log p_old has mean -b and standard deviation |d mean| / std; corrected: 0 and |d
    mean| whatever std."""
    random = torch.Generator().manual_seed(1)
    for std in (torch.full((20000,), 0.2), torch.full((20000,), 2.0)):
        old_mean = torch.zeros(20000, 1)
        mean = torch.full((20000, 1), 0.05)
        reached = std[:, None] * torch.randn(20000, 1, generator=random)
        log_ratio = guarded_log_ratio(
            step_log_density(reached, mean, std), step_log_density(reached, old_mean, std), mean, old_mean, std
        )
        assert log_ratio.mean().item() == pytest.approx(0, abs=2e-3)
        assert log_ratio.std().item() == pytest.approx(0.05, rel=0.03)


def test_kl_is_that_of_two_normals():
    one, other, std = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([0.5])
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(one, 0.5), torch.distributions.Normal(other, 0.5)
    ).mean()
    assert step_kl(one, other, std).item() == pytest.approx(wanted.item())
