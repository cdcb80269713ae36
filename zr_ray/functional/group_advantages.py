"""From the scores of a group's images to one advantage per image, by name; what was not scored stays out.

Axes: P prompts, G images of a prompt (its group), D dimensions. Everything is computed in float64.
GDPO: arXiv 2601.05242.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["rank", "std", "gdpo"]
SMALLEST_STD = 1e-6
"""Floor of a group's standard deviation, in the rewards' unit: equal rewards give advantages of 0."""


def image_rewards(
    mu: Tensor, sigma: Tensor, weights: Tensor, rule: Literal["sum", "worst"] = "sum", risk: float = 0.0
) -> Tensor:
    """One reward per image: the weighted sum over dimensions, or the lowest weighted one, of mu - k sigma.

    Args: mu, sigma: [..., D] rubric points. weights: [D]. risk: k, at least 0.   Returns: [...]; nan where a dimension
    is nan."""
    value = weights.to(mu) * (mu - risk * sigma if risk else mu)
    return value.sum(-1) if rule == "sum" else value.min(-1).values


def parsed_scores(q: Tensor, bins: Tensor) -> Tensor:
    """The scalar baseline: the most probable score, which is what a judge that writes one label would say.   q: [...,
    K].   Returns: [...]."""
    return torch.where(q.isnan().any(-1), torch.nan, bins.to(q)[q.nan_to_num().argmax(-1)])


def advantages(rewards: Tensor, normalization: Normalization) -> tuple[Tensor, Tensor]:
    """Advantages [P, G] and which of them count [P, G] bool.

        "rank":  normal scores of the ranks inside the group, ties averaged: one outlier cannot own the update
        "std":   (r - mean) / std inside the group
        "gdpo":  "std" per dimension, summed over dimensions, then divided by the standard deviation of the batch

    An image without a finite reward is left out of all statistics; a group with fewer than two others is left out as a
    whole.
    Args: rewards: [P, G], or for "gdpo" [P, G, D] weighted rewards of the dimensions; nan: not scored.
    Raises: ValueError if the axes do not fit the name."""
    wanted = 3 if normalization == "gdpo" else 2
    if rewards.ndim != wanted:
        raise ValueError(f'rewards must have {wanted} axes for "{normalization}", got {tuple(rewards.shape)}')
    rewards = rewards.detach().double()
    valid = rewards.isfinite() if wanted == 2 else rewards.isfinite().all(-1)
    valid = valid & (valid.sum(-1, keepdim=True) >= 2)
    if normalization == "rank":
        values = torch.stack([_normal_scores(row, use) for row, use in zip(rewards, valid, strict=True)])
    elif normalization == "std":
        values = _standardized(rewards, valid)
    else:
        values = _standardized(rewards.movedim(-1, 0), valid.expand(rewards.shape[-1], *valid.shape)).sum(0)
        spread = values[valid].std(correction=0) if valid.any() else values.new_ones(())
        values = values / spread.clamp_min(SMALLEST_STD)
    return torch.where(valid, values, torch.zeros_like(values)), valid


def _standardized(rewards: Tensor, valid: Tensor) -> Tensor:
    """(r - mean) / max(std, floor) over the last axis, population statistics of the valid entries; 0 elsewhere."""
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    known = torch.where(valid, rewards, torch.zeros_like(rewards))
    centered = torch.where(valid, rewards - known.sum(-1, keepdim=True) / count, torch.zeros_like(rewards))
    std = (centered.square().sum(-1, keepdim=True) / count).sqrt()
    return torch.where(std > SMALLEST_STD, centered / std.clamp_min(SMALLEST_STD), torch.zeros_like(centered))


def _normal_scores(rewards: Tensor, valid: Tensor) -> Tensor:
    """[G] Phi^-1((rank - 1/2) / n) of the valid entries, average over ties; a group of equals gets 0."""
    scores = torch.zeros_like(rewards)
    known = rewards[valid]
    count = len(known)
    if not count:
        return scores
    quantiles = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    _, place, times = known.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(times), dtype=torch.float64).index_add(0, place[known.argsort(stable=True)], quantiles)
    scores[valid] = (sums / times)[place]
    return scores
