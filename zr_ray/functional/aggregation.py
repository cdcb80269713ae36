"""From score distributions to one reward per image: a weighted, optionally risk-averse sum over dimensions (Z-Reward,
arXiv 2606.09076, section 5).

Axes: B images, D dimensions, K bins. Scores, means and standard deviations are in rubric points.
Left out on purpose: normalizing advantages across a group; that is policy-gradient training's.
"""

from __future__ import annotations

from torch import Tensor

from zr_ray.functional.scores import expected_score, score_variance

SMALLEST_VARIANCE = 1e-12
"""Rubric points squared. Below it sigma counts as constant: the square root has no derivative at 0."""


def score_deviation(log_q: Tensor, bins: Tensor) -> Tensor:
    """sigma: standard deviation of the score under q. Its gradient is 0, not infinite, where q is one-hot.

        sigma = sqrt(sum_k (s_k - mu)^2 q_k)

    Args: log_q: [..., K] normalized, nats. bins: [K] ascending, rubric points.
    Returns: [...] rubric points, in [1e-6, (bins[-1] - bins[0]) / 2].   Raises: ValueError if K differs."""
    return score_variance(log_q, bins).clamp_min(SMALLEST_VARIANCE).sqrt()


def aggregate_reward(log_q: Tensor, bins: Tensor, weights: Tensor, risk: float = 0.0) -> Tensor:
    """One reward per image; with `risk` above 0 an uncertain judge counts for less.

        R = sum_d w_d (mu_d - k sigma_d)

    Args: log_q: [B, D, K] normalized, nats. bins: [K] ascending, rubric points. weights: [D] or [B, D], any sign. risk:
    k, at least 0.
    Returns: [B] rubric points times the weights' unit, differentiable.   Raises: ValueError if shapes differ or risk is
    negative."""
    if log_q.ndim != 3 or weights.shape not in (log_q.shape[1:2], log_q.shape[:2]):
        raise ValueError(
            f"weights must be [D] or [B, D] for log_q [B, D, K], got {tuple(weights.shape)} for {tuple(log_q.shape)}"
        )
    if not risk >= 0:
        raise ValueError(f"risk must be at least 0, got {risk}")
    value = expected_score(log_q, bins)
    if risk > 0:
        value = value - risk * score_deviation(log_q, bins)
    return (weights.to(value) * value).sum(-1)
