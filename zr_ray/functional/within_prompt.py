"""How a judge orders images of one prompt: what a generator that is trained on its reward can learn from. Pure torch.

Axes: P prompts, S images of each, D dimensions. reference: scores taken as truth (a verifier's, or annotators'); mu:
the judge's.
"""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor

NOISE_GAP = 0.05
"""Rubric points of difference in the reference below which a pair is no pair."""


def pair_outcomes(reference: Tensor, mu: Tensor, gap: float = NOISE_GAP) -> tuple[Tensor, Tensor]:
    """Per prompt and dimension how many of its pairs differ by more than `gap`, and how many of these mu orders alike;
    a tie in mu is wrong.

    Args: reference, mu: [P, S, D].   Returns: (right [P, D], pairs [P, D]), float64."""
    first, second = torch.triu_indices(reference.shape[1], reference.shape[1], offset=1)
    wanted, got = reference[:, first] - reference[:, second], mu[:, first] - mu[:, second]
    counted = wanted.abs() > gap
    right = counted & (wanted * got > 0)
    return right.double().sum(1), counted.double().sum(1)


def pair_accuracy(reference: Tensor, mu: Tensor, gap: float = NOISE_GAP) -> Tensor:
    """[D] share of pairs ordered alike, over all prompts; nan in a dimension without pairs. Args as `pair_outcomes`."""
    right, pairs = pair_outcomes(reference, mu, gap)
    return right.sum(0) / pairs.sum(0)


def spread(scores: Tensor) -> Tensor:
    """[D] root mean square over prompts of the standard deviation inside a prompt. scores: [P, S, D]."""
    centered = scores.double() - scores.double().mean(1, keepdim=True)
    return centered.square().mean((0, 1)).sqrt()


def within_correlation(reference: Tensor, mu: Tensor) -> Tensor:
    """[D] Pearson correlation of what is left of both after taking away each prompt's mean. reference, mu: [P, S,
    D]."""
    a, b = (x.double() - x.double().mean(1, keepdim=True) for x in (reference, mu))
    return (a * b).sum((0, 1)) / ((a * a).sum((0, 1)) * (b * b).sum((0, 1))).sqrt()


def best_of(reward: Tensor, reference: Tensor, n: int) -> Tensor:
    """[P] expected reference of the image that the reward likes best among n drawn without replacement; exact, ties
    share.

    Args: reward, reference: [P, S].   Raises: ValueError unless 1 <= n <= S."""
    count = reward.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"n must lie in 1..{count}, got {n}")
    order = reward.argsort(dim=1, stable=True)
    # the image of rank r (from 0) is the best of n when the other n - 1 come from the r below it
    chance = torch.tensor([comb(rank, n - 1) / comb(count, n) for rank in range(count)], dtype=torch.float64)
    ordered = reward.gather(1, order)
    same = (ordered[:, :, None] == ordered[:, None, :]).double()
    shared = (same / same.sum(-1, keepdim=True)) @ chance
    return (shared * reference.double().gather(1, order)).sum(1)
