"""Training on the reward's own gradient: which steps carry it to the model, with which weights, and how single samples
are held back.

ReFL (arXiv 2304.05977), DRaFT (arXiv 2309.17400), FlowBP (arXiv 2606.11075). The reward service hands back dR/dimage;
the decoder turns
it into g = dR/dx_0; what is left is linear in the velocities of chosen steps.
Axes: N samples; M candidate steps, K chosen ones.
Left out on purpose: gradients with respect to prompts or conditions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zr_ray.functional.flow import per_sample


def candidate_steps(sigmas: Tensor, smallest: float) -> list[int]:
    """Steps whose noise level is at least `smallest` and that move at all.   sigmas: [N + 1] of a schedule.

    Raises: ValueError if there is none."""
    steps = [k for k in range(len(sigmas) - 1) if sigmas[k] >= smallest and sigmas[k + 1] < sigmas[k]]
    if not steps:
        raise ValueError(
            f"no step starts at a sigma of at least {smallest}, the schedule is"
            f" {[round(s, 3) for s in sigmas.tolist()]}"
        )
    return steps


def spread_steps(candidates: list[int], count: int, generator: torch.Generator) -> list[int]:
    """One step, drawn at random, out of each of `count` equal parts of the candidates: ascending and never twice the
    same.

    Raises: ValueError if there are fewer candidates than parts."""
    if not 1 <= count <= len(candidates):
        raise ValueError(
            f"the number of steps with a gradient must be in 1..{len(candidates)} (those at high noise), got {count}"
        )
    edges = [len(candidates) * part // count for part in range(count + 1)]
    return [
        candidates[int(torch.randint(low, high, (), generator=generator))]
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]


def surrogate_weights(
    sigmas: Tensor, candidates: list[int], chosen: list[int], rule: Literal["euler", "lagrange"]
) -> Tensor:
    """dx_0/dv of the chosen steps in FlowBP's surrogate x_0 = sg(x_0) + sum_k w_k (v_k - sg(v_k)), whose value is the
    true final image.

        "euler":     w_k = (sigma_{k+1} - sigma_k) M / K: on average the gradient through all candidates
        "lagrange":  the velocities of all candidates as the polynomial through the chosen ones

    Args: sigmas: [N + 1]. candidates: M steps; chosen: K of them.   Returns: [K], negative for "euler"; both rules sum
    to about sigma_end - sigma_start of the candidates (Lagrange exactly)."""
    lengths = sigmas.double().diff()
    if rule == "euler":
        return (lengths[chosen] * len(candidates) / len(chosen)).float()
    nodes = sigmas.double()[chosen]
    weights = []
    for k, node in enumerate(nodes):
        others = torch.cat([nodes[:k], nodes[k + 1 :]])
        basis = ((sigmas.double()[candidates][:, None] - others) / (node - others)).prod(1)  # [M]
        weights.append((lengths[candidates] * basis).sum())
    return torch.stack(weights).float()


def clip_to_median(
    gradients: Tensor, most: float = 1.0, all_norms: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Gradients of single samples scaled down to at most `most` times the median norm: some reach fourteen times it.

    A gradient that is not finite becomes 0 and does not enter the median.
    Args: gradients: [N, ...]. most: in medians. all_norms: [M] norms that the median is of, where other ranks hold
        further samples; None: those of `gradients`.   Returns: [N, ...], metrics."""
    finite = gradients.flatten(1).isfinite().all(1)
    gradients = torch.where(per_sample(finite, gradients) > 0, gradients, torch.zeros_like(gradients))
    norms = gradients.flatten(1).norm(dim=1)
    counted = norms if all_norms is None else all_norms.to(norms)
    counted = counted[counted.isfinite() & (counted > 0)]
    if not len(counted):
        return gradients, {"gradient/median_norm": 0.0, "gradient/largest_to_median": 0.0}
    median = counted.median()
    scale = (most * median / norms.clamp_min(1e-30)).clamp_max(1.0)
    return gradients * per_sample(scale, gradients), {
        "gradient/median_norm": float(median),
        "gradient/largest_to_median": float(counted.max() / median),
    }


def balanced_sum(
    gradients: Tensor, weights: Tensor, all_norms: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum of several scores' gradients after each is brought to one size, so that a score of steep slope
    does not own the update, whatever its unit.

        n_d = sqrt(mean_b |g[b,d]|^2)        c = sum_d |w_d| n_d / sum_d |w_d|        g[b] = sum_d w_d (c / n_d) g[b,d]

    A score whose gradient is 0 everywhere takes no part. The contributions' sizes are to one another as the weights,
    and their sum is what it was.
    Args: gradients: [N, D, ...]. weights: [D], any sign. all_norms: [M, D] norms |g[b,d]| that n is of, where other
        ranks hold further samples; None: those of `gradients`.
    Returns: [N, ...] and metrics: the largest score's share of the sizes before. A sample with a gradient that is not
        finite gets 0 and does not enter n."""
    if gradients.ndim < 3 or weights.shape != gradients.shape[1:2]:
        raise ValueError(
            f"weights must be [D] for gradients [N, D, ...], got {tuple(weights.shape)} for {tuple(gradients.shape)}"
        )
    finite = gradients.flatten(1).isfinite().all(1)
    gradients = torch.where(finite.view(-1, *[1] * (gradients.ndim - 1)), gradients, torch.zeros_like(gradients))
    norms = gradients.flatten(2).norm(dim=2) if all_norms is None else all_norms.to(gradients)
    known = norms[norms.isfinite().all(1) & (norms > 0).any(1)]
    size = known.square().mean(0).sqrt() if len(known) else norms.new_zeros(norms.shape[1])
    weight = weights.to(gradients)
    sizes = weight.abs() * size
    use = sizes > 0
    if not use.any():
        return torch.zeros_like(gradients[:, 0]), {"gradient/largest_share": 0.0}
    common = sizes.sum() / weight[use].abs().sum()
    scale = torch.where(use, weight * common / size.clamp_min(1e-30), torch.zeros_like(size))
    return torch.einsum("nd...,d->n...", gradients, scale), {"gradient/largest_share": float(sizes.max() / sizes.sum())}


def hinge_weights(rewards: Tensor, threshold: float | None) -> Tensor:
    """ReFL's relu(threshold - r): samples whose reward has passed the threshold get no gradient. None: all count.
    rewards: [N]."""
    return torch.ones_like(rewards) if threshold is None else (rewards < threshold).to(rewards)
