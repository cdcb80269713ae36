"""Pair losses without gaps, for data that says which image is better and nothing more.

GDSO's pairwise term needs both scores and matches their gap; pairs-only data has none, so these push one side above the
other.
Axes: B pairs, J = 2 sides (0 winner, 1 loser), K bins; `...` any leading shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zr_ray.functional.scores import expected_score, score_variance


def win_log_probability(log_q_a: Tensor, log_q_b: Tensor) -> Tensor:
    """log P(a beats b) for independent scores a ~ q_a, b ~ q_b, half of the ties counted as wins. Exact, all K x K
    outcomes.

        P = sum_{k > l} q_a(k) q_b(l) + (1/2) sum_k q_a(k) q_b(k)

    Args: log_q_a, log_q_b: [..., K] normalized, nats, bins ascending.
    Returns: [...] nats, at most 0; summed in log space, so that a hopeless pair still has a finite gradient.
    Raises: ValueError if K differs."""
    if log_q_a.shape[-1] != log_q_b.shape[-1]:
        raise ValueError(f"both distributions need the same bins, got {log_q_a.shape[-1]} and {log_q_b.shape[-1]}")
    bins = log_q_a.shape[-1]
    index = torch.arange(bins, device=log_q_a.device)
    tie = torch.zeros(bins, bins, dtype=log_q_a.dtype, device=log_q_a.device)
    weight = tie.masked_fill(index[:, None] == index, -math.log(2)).masked_fill(index[:, None] < index, -torch.inf)
    joint = log_q_a.unsqueeze(-1) + log_q_b.unsqueeze(-2) + weight
    return joint.flatten(-2).logsumexp(-1)


def win_probability(log_q_a: Tensor, log_q_b: Tensor) -> Tensor:
    """P(a beats b) of `win_log_probability`; P(a, b) + P(b, a) = 1.

    Args: log_q_a, log_q_b: [..., K] normalized, nats.   Returns: [...] in [0, 1]; 0.5 when both are the same.
    Raises: ValueError if K differs."""
    return win_log_probability(log_q_a, log_q_b).exp()


def win_nll(winner_log_q: Tensor, loser_log_q: Tensor) -> Tensor:
    """-log P(winner beats loser) under both score distributions: the likelihood of one human choice.

    Args: winner_log_q, loser_log_q: [..., K] normalized, nats.
    Returns: [...] nats, at least 0, log 2 when both are the same.   Raises: ValueError if K differs."""
    return -win_log_probability(winner_log_q, loser_log_q)


def bradley_terry_nll(winner_scores: Tensor, loser_scores: Tensor, scale: float = 1.0) -> Tensor:
    """-log sigmoid((mu_w - mu_l) / scale): Bradley and Terry, 1952. Never satisfied: the gap grows without bound.

    Args: winner_scores, loser_scores: [...] mu, rubric points. scale: rubric points, above 0.
    Returns: [...] nats, above 0.   Raises: ValueError if scale <= 0."""
    if not scale > 0:
        raise ValueError(f"scale must be above 0 rubric points, got {scale}")
    return torch.nn.functional.softplus(-(winner_scores - loser_scores) / scale)


def thurstone_nll(winner_log_q: Tensor, loser_log_q: Tensor, bins: Tensor) -> Tensor:
    """-log Phi((mu_w - mu_l) / sqrt(var_w + var_l)): Thurstone's case III with the moments of q (DeQA-Score's fidelity
    uses this P).

    Args: winner_log_q, loser_log_q: [..., K] normalized, nats. bins: [K] ascending, rubric points.
    Returns: [...] nats, above 0; variances are floored at 1e-4 squared points, so that two one-hots stay finite.
    Raises: ValueError if K differs."""
    gap = expected_score(winner_log_q, bins) - expected_score(loser_log_q, bins)
    variance = score_variance(winner_log_q, bins) + score_variance(loser_log_q, bins)
    return -torch.special.log_ndtr(gap / variance.clamp_min(1e-4).sqrt())
