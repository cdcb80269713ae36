"""Flow-GRPO on denoising steps: clipped ratios of step densities, KL to the reference, and GRPO-Guard's corrected
ratio.

Sources: Flow-GRPO (arXiv 2505.05470), GRPO-Guard (arXiv 2510.22319). One row is one stochastic step of one image; its
advantage is the image's. Log-densities are means over latent numbers (`flow.step_log_density`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zr_ray.functional.flow import per_sample


def clipped_terms(log_ratio: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, dict[str, float]]:
    """max(-A rho, -A clip(rho, 1 - c, 1 + c)) per row, with rho = exp(log_ratio).

    Args: log_ratio: [N] nats, 0 at the first update. advantages: [N]. clip: c, about 1e-4: densities are means over
    latent numbers.
    Returns: [N], and the largest |rho - 1| and the share of rows whose gradient the clip takes away."""
    ratio = log_ratio.exp()
    free, held = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    away = (ratio - 1).abs().detach()
    metrics = {"policy/ratio_max_abs_diff": float(away.max()), "policy/clip_frac": float((held > free).float().mean())}
    return torch.maximum(free, held), metrics


def guarded_log_ratio(
    log_density: Tensor, old_log_density: Tensor, mean: Tensor, old_mean: Tensor, std: Tensor
) -> Tensor:
    """GRPO-Guard: log rho = (log p - log p_old + b) std with b = mean (mu - mu_old)^2 / (2 std^2).

    Plain ratios average below 1, by b, and spread by 1 / std, so low-noise steps clip first; b and std take both away.
    Args: log_density, old_log_density: [N]. mean, old_mean: [N, ...]. std: [N].   Returns: [N]."""
    return (log_density - old_log_density + step_kl(mean, old_mean, std)) * std.float()


def step_kl(mean: Tensor, other_mean: Tensor, std: Tensor) -> Tensor:
    """KL of two steps of equal noise, nats per latent number: mean (mu - mu')^2 / (2 std^2).   mean, other_mean: [N,
    ...]; std: [N].

    Departs from Flow-GRPO's code, which divides by 2 g^2: that is this value times the step length, so its beta depends
    on the schedule."""
    return ((mean.float() - other_mean.float()).square() / (2 * per_sample(std, mean) ** 2)).flatten(1).mean(1)
