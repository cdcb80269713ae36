"""Flow steps: marginals on a Gaussian in closed form, equal conventions of the three SDEs, densities, dtypes."""

import math

import pytest
import torch

from zr_ray.functional.flow import (
    clean_estimate,
    noised,
    ode_step,
    sde_step,
    shifted_sigmas,
    step_log_density,
    stratified_sigmas,
)

MEAN, VARIANCE = 1.0, 0.25
"""Of the clean data, which are normal; the exact velocity is then linear in x."""


def exact_velocity(x, sigma):
    total = (1 - sigma) ** 2 * VARIANCE + sigma**2
    away = x - (1 - sigma) * MEAN
    return sigma / total * away - (MEAN + (1 - sigma) * VARIANCE / total * away)


def final_moments(steps, kind, strength):
    """Mean and variance after all steps, propagated through the affine step: its value at x = 0 and x = 1 tells it
    all."""
    sigmas = torch.linspace(1, 0, steps + 1)
    mean, variance = 0.0, 1.0
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = torch.tensor([[0.0], [1.0]])
        two, after = now.expand(2), then.expand(2)
        if kind == "ode":
            moved, std = ode_step(x, exact_velocity(x, now), two, after), torch.zeros(2)
        else:
            moved, std = sde_step(x, exact_velocity(x, now), two, after, kind, strength, float(sigmas[1]))
        slope = float(moved[1] - moved[0])
        mean, variance = float(moved[0]) + slope * mean, slope**2 * variance + float(std[0]) ** 2
    return mean, variance


@pytest.mark.parametrize(
    ("kind", "strength", "wanted"),
    [
        ("ode", 0.0, {10: 0.1856, 20: 0.2155, 40: 0.2321, 200: 0.2463}),
        ("flow", 0.7, {10: 0.2300, 20: 0.2415, 40: 0.2474, 200: 0.2510}),
        ("dance", 0.3, {10: 0.1950, 20: 0.2206, 40: 0.2348, 200: 0.2469}),
        ("cps", 0.7, {10: 0.1371, 20: 0.1553, 40: 0.1661, 200: 0.1769}),
        ("cps", 0.8, {10: 0.1238, 20: 0.1395, 40: 0.1491, 200: 0.1590}),
    ],
)
def test_marginals_of_a_gaussian_in_closed_form(kind, strength, wanted):
    """The table was computed independently, to four digits; the data's variance is .25."""
    for steps, variance in wanted.items():
        mean, got = final_moments(steps, kind, strength)
        assert mean == pytest.approx(1.0, abs=2e-3)
        assert got == pytest.approx(variance, abs=1.5e-4), (kind, steps)


def test_no_noise_is_the_ode_step_for_all():
    x, v = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    sigmas, after = torch.tensor([0.9, 0.7, 0.4, 0.2]), torch.tensor([0.8, 0.4, 0.3, 0.0])
    wanted = ode_step(x, v, sigmas, after)
    for kind in ("flow", "dance", "cps"):
        mean, std = sde_step(x, v, sigmas, after, kind, 0.0, 0.9)
        assert torch.allclose(mean, wanted, atol=1e-6) and std.abs().max() < 1e-7


def test_flow_sde_by_hand():
    """sigma .5 -> .3, a = 1: g^2 = 1, mean = x + (v + (x + .5 v)) (-.2), std = sqrt(.2)."""
    mean, std = sde_step(
        torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([0.5]), torch.tensor([0.3]), "flow", 1.0, 0.9
    )
    assert mean.item() == pytest.approx(2 - 0.2 * (1 + 2.5)) and std.item() == pytest.approx(math.sqrt(0.2))


def test_the_first_level_does_not_divide_by_zero():
    mean, std = sde_step(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1), torch.tensor([0.9]), "flow", 0.7, 0.9)
    assert std.item() == pytest.approx(0.7 * math.sqrt(1 / 0.1) * math.sqrt(0.1)) and mean.isfinite().all()


def test_log_density_is_the_mean_over_numbers_and_holds_what_was_reached_constant():
    reached = torch.tensor([[1.0, 3.0]], requires_grad=True)
    mean = torch.zeros(1, 2, requires_grad=True)
    value = step_log_density(reached, mean, torch.tensor([2.0]))
    assert value.item() == pytest.approx(-(1 / 8 + 9 / 8) / 2 - math.log(2) - 0.5 * math.log(2 * math.pi))
    value.sum().backward()
    assert reached.grad is None and torch.allclose(mean.grad, torch.tensor([[1 / 8, 3 / 8]]))


def test_everything_is_float32_even_from_bfloat16():
    x = torch.randn(2, 3, 2, 2).bfloat16()
    sigmas, after = torch.tensor([0.8, 0.6]), torch.tensor([0.6, 0.4])
    mean, std = sde_step(x, x, sigmas, after, "flow", 0.7, 0.9)
    values = [
        mean,
        std,
        ode_step(x, x, sigmas, after),
        clean_estimate(x, x, sigmas),
        noised(x, x, sigmas),
        step_log_density(x, mean, std),
    ]
    assert all(value.dtype == torch.float32 for value in values)


def test_noise_levels_fill_their_range_evenly_before_the_shift():
    drawn = stratified_sigmas(1000, 3.0, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.sort().values, shifted_sigmas((torch.arange(1000) + 0.5) / 1000, 3.0), atol=2e-3)
    low = stratified_sigmas(50, 3.0, torch.Generator().manual_seed(0), high=0.5)
    assert 0 < low.min() and low.max() < 0.5 and low.max() > 0.48
    with pytest.raises(ValueError, match="not empty"):
        stratified_sigmas(2, 3.0, torch.Generator(), low=0.5, high=0.5)


def test_refuses_an_unknown_sde():
    with pytest.raises(ValueError, match="flow, dance or cps"):
        sde_step(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1), torch.zeros(1), "ddim", 0.1, 0.9)
