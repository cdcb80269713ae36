"""Rectified flow: noise levels, ODE and SDE steps, log-densities of a step. All of it in float32, whatever the model
computes in.

    x = (1 - sigma) x_0 + sigma eps,   v = eps - x_0 = dx/dsigma,   a step goes from sigma to sigma' < sigma

Sources: Flow-GRPO (arXiv 2505.05470), DanceGRPO (arXiv 2505.07818), CPS (arXiv 2509.05952). One SDE family, three
choices of its noise.
Axes: N samples, then any latent shape; N + 1 sigmas of a schedule of N steps, falling, the last one 0.
Left out on purpose: schedules of a model family (its scheduler makes them), second-order solvers.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

SdeKind = Literal["flow", "dance", "cps"]
"""Whose noise: Flow-SDE g = a sqrt(sigma / (1 - sigma)), Dance-SDE g = a, or CPS, which keeps the coefficients of the
schedule."""


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, ...] float32, to multiply with `like` [N, ...]."""
    return values.float().view(-1, *[1] * (like.ndim - 1))


def shifted_sigmas(levels: Tensor, shift: float) -> Tensor:
    """Static timestep shift of SD3 (arXiv 2403.03206, section 5.3.2): sigma = shift u / (1 + (shift - 1) u).   levels:
    u in [0, 1]."""
    return shift * levels / (1 + (shift - 1) * levels)


def stratified_sigmas(
    count: int, shift: float, generator: torch.Generator, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Noise levels for training: u uniform, one draw in each of `count` equal parts of (u(low), u(high)), shuffled and
    shifted.

    Args: low, high: range of sigma, 0 <= low < high <= 1.   Returns: [count] in (low, high).   Raises: ValueError on an
    empty range."""
    if not 0 <= low < high <= 1:
        raise ValueError(f"the range of sigma must be inside [0, 1] and not empty, got ({low}, {high})")
    first, last = (sigma / (shift - (shift - 1) * sigma) for sigma in (low, high))
    parts = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return shifted_sigmas(first + (last - first) * parts.clamp(1e-4, 1 - 1e-4), shift)


def noised(clean: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """x = (1 - sigma) x_0 + sigma eps.   clean, noise: [N, ...]; sigmas: [N]."""
    level = per_sample(sigmas, clean)
    return (1 - level) * clean.float() + level * noise.float()


def clean_estimate(latents: Tensor, velocity: Tensor, sigmas: Tensor) -> Tensor:
    """x_0 as one step sees it: x - sigma v."""
    return latents.float() - per_sample(sigmas, latents) * velocity.float()


def ode_step(latents: Tensor, velocity: Tensor, sigmas: Tensor, next_sigmas: Tensor) -> Tensor:
    """Euler: x' = x + (sigma' - sigma) v.   sigmas, next_sigmas: [N]."""
    return latents.float() + per_sample(next_sigmas - sigmas, latents) * velocity.float()


def sde_step(
    latents: Tensor,
    velocity: Tensor,
    sigmas: Tensor,
    next_sigmas: Tensor,
    kind: SdeKind,
    strength: float,
    largest: float,
) -> tuple[Tensor, Tensor]:
    """Mean [N, ...] and standard deviation [N] of x' under one stochastic step.

        Flow, Dance:  mean = x + (v + g^2 / (2 sigma) eps_hat)(sigma' - sigma),   std = g sqrt(sigma - sigma')
        CPS:          mean = (1 - sigma') x0_hat + sqrt(sigma'^2 - std^2) eps_hat,   std = sigma' sin(a pi / 2)

    with x0_hat = x - sigma v and eps_hat = x + (1 - sigma) v. Flow and Dance keep the marginals of the ODE as steps
    become small; CPS does not (its samples have too little spread, which is why they look clean). a = 0 is the ODE step
    for all three.
    Args: strength: a, at least 0 (Flow .7, Dance .3, CPS .8 in their papers). largest: sigma that stands for levels
        above it in Flow's 1 - sigma: the schedule's second level, as sigma = 1 would divide by 0.
    Raises: ValueError on an unknown kind or a negative strength."""
    if kind not in ("flow", "dance", "cps") or strength < 0:
        raise ValueError(
            f"the SDE must be flow, dance or cps with a strength of at least 0, got {kind!r} with {strength}"
        )
    x, v, now, then = latents.float(), velocity.float(), sigmas.float(), next_sigmas.float()
    noise = x + (1 - per_sample(now, x)) * v
    if kind == "cps":
        std = then * math.sin(strength * math.pi / 2)
        rest = (then**2 - std**2).clamp_min(0).sqrt()
        return (1 - per_sample(then, x)) * clean_estimate(x, v, now) + per_sample(rest, x) * noise, std
    g = strength * (now / (1 - now.clamp_max(largest))).sqrt() if kind == "flow" else torch.full_like(now, strength)
    drift = v + per_sample(g**2 / (2 * now), x) * noise
    return x + per_sample(then - now, x) * drift, g * (now - then).sqrt()


def step_log_density(reached: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x'; mean, std^2) as the MEAN over latent numbers, as all Flow-GRPO codes have it: a clip range of 1e-4 then
    means 1e-4 times the count of numbers in joint log-probability, and must be tuned again for another image size.

    Args: reached: [N, ...] x', held constant. mean: [N, ...]. std: [N], above 0.   Returns: [N] nats per number."""
    wide = per_sample(std, mean)
    squared = (reached.detach().float() - mean).square() / (2 * wide**2)
    return -(squared + wide.log() + 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)
