"""Group-wise Direct Score Optimization: rewards and direct losses (Z-Reward, arXiv 2606.09076, section 3, Eq. 7-14).

Axes: B pairs, J = 2 sides (0 winner, 1 loser), G group, T tokens, K bins, D dimensions.
`valid` [B, 2, G] bool marks well-formed samples; None means all. A malformed sample enters no mean, may hold nan or
inf, and gets a zero gradient here. (A nan further up, in the log-probs that made mu, must be masked there: 0 * nan is
nan.) Each loss comes as the scalar of the paper and as per-sample terms, whose sum and count the caller may add over
micro-batches and ranks. Rewards are detached: they are data to the policy term.
Left out on purpose: Bradley-Terry (see rank.py). The gap is matched, not enlarged without bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zr_ray.functional.scores import bin_index


def pointwise_error(expected_scores: Tensor, human_scores: Tensor, score_range: float) -> Tensor:
    """Distance between sampled and annotated score; Eq. 7's reward is `1 - e`.

        e[b,j,i] = |mu[b,j,i] - s[b,j]| / score_range

    Args: expected_scores: [B, 2, G] mu, rubric points. human_scores: [B, 2] s-hat, rubric points. score_range: S_max -
    S_min > 0.
    Returns: [B, 2, G] in [0, 1]; nan stays nan.   Raises: ValueError if the sides do not line up."""
    _check_sides(expected_scores, human_scores, score_range)
    return (expected_scores - human_scores.to(expected_scores).unsqueeze(-1)).abs() / score_range


def gap_valid(valid: Tensor) -> Tensor:
    """Samples that take part in the pairwise terms: valid themselves, with at least one valid sample on the other side.

    Args: valid: [B, 2, G] bool.   Returns: [B, 2, G] bool."""
    return valid & valid.flip(1).any(-1, keepdim=True)


def pairwise_gap_error(
    expected_scores: Tensor, human_scores: Tensor, score_range: float, valid: Tensor | None = None
) -> Tensor:
    """Mean distance between sampled and annotated score gaps (Eq. 10-11).

        e[b,j,i] = mean_k |(mu[b,j,i] - mu[b,other,k]) - (s[b,j] - s[b,other])| / score_range,   k over the valid
        samples

    Eq. 10's reward is `1 - e` on rollout scores; Eq. 11's loss is `e.mean()` on learner scores: micro-batches add up
    its sum and `gap_valid(valid).sum()`. Each gap (i, k) is counted from both sides, as in the paper, and the gradient
    flows through both.
    Args: expected_scores: [B, 2, G] mu, rubric points. human_scores: [B, 2] s-hat, rubric points. score_range: S_max -
        S_min > 0. valid: [B, 2, G] bool or None.
    Returns: [B, 2, G] in [0, 2]; 0 when every gap matches, and 0 where `gap_valid(valid)` is False: count those out
    with it.
    Raises: ValueError if the sides do not line up."""
    _check_sides(expected_scores, human_scores, score_range)
    valid = _all_valid(expected_scores, valid)
    mu = torch.where(valid, expected_scores, torch.zeros_like(expected_scores))
    human_scores = human_scores.to(mu)
    gaps = mu.unsqueeze(-1) - mu.flip(1).unsqueeze(-2)  # [B, 2, G own i, G other k]
    human_gaps = (human_scores - human_scores.flip(1))[..., None, None]
    counted = valid.flip(1).unsqueeze(-2)
    distance = (gaps - human_gaps).abs() * counted
    error = distance.sum(-1) / counted.sum(-1).clamp_min(1) / score_range
    return error * gap_valid(valid)


def gdso_reward(
    expected_scores: Tensor,
    human_scores: Tensor,
    score_range: float,
    lambda_pointwise: float,
    lambda_pairwise: float,
    valid: Tensor | None = None,
) -> Tensor:
    """Reward of each sample (Eq. 13): r = lambda_pt (1 - e_pt) + lambda_pw (1 - e_pw).

    Ours (the paper is silent): a malformed sample gets the lowest reward among the valid ones of its own side; a side
    with none gets 0 everywhere, hence advantage 0. Where the other side has no valid sample there is no gap: the
    pointwise part then
    carries the whole weight, r = (lambda_pt + lambda_pw)(1 - e_pt), or 0 if lambda_pt is 0.
    Args: expected_scores: [B, 2, G] mu of the rollout policy, rubric points. human_scores: [B, 2] s-hat, rubric points.
        score_range: S_max - S_min > 0. lambda_pointwise, lambda_pairwise: at least 0. valid: [B, 2, G] bool or None.
    Returns: [B, 2, G] in [-lambda_pw, lambda_pt + lambda_pw], detached.   Raises: ValueError if the sides do not line
    up."""
    mu = expected_scores.detach()
    valid = _all_valid(mu, valid)
    with_gap = gap_valid(valid)
    pointwise = 1 - pointwise_error(torch.where(valid, mu, torch.zeros_like(mu)), human_scores, score_range)
    pairwise = 1 - pairwise_gap_error(mu, human_scores, score_range, valid)
    alone = (lambda_pointwise + lambda_pairwise) * pointwise if lambda_pointwise > 0 else torch.zeros_like(pointwise)
    reward = torch.where(with_gap, lambda_pointwise * pointwise + lambda_pairwise * pairwise, alone)
    lowest = torch.where(valid, reward, torch.full_like(reward, torch.inf)).amin(-1, keepdim=True)
    lowest = torch.where(valid.any(-1, keepdim=True), lowest, torch.zeros_like(lowest))
    return torch.where(valid, reward, lowest)


def pointwise_terms(
    score_log_q: Tensor, human_scores: Tensor, bins: Tensor, valid: Tensor | None = None, targets: Tensor | None = None
) -> Tensor:
    """Per-sample cross-entropy of Eq. 8: -log q[b,j,i](s_j), or -sum_k targets_k log q_k with soft labels. Micro-batch
    with these.

    Args: score_log_q: [B, 2, G, K] learner log q, nats. human_scores: [B, 2] rubric points, each a bin unless targets
        are given. bins: [K]. valid: [B, 2, G] bool or None. targets: [B, 2, K] soft labels that sum to 1, or None.
    Returns: [B, 2, G] nats, at least 0; 0 with zero gradient where invalid; denominator `valid.sum()`.
    Raises: ValueError if shapes do not line up or a hard score is no bin."""
    if score_log_q.ndim != 4 or score_log_q.shape[1] != 2 or score_log_q.shape[-1] != len(bins):
        raise ValueError(f"score_log_q must be [B, 2, G, K={len(bins)}], got {tuple(score_log_q.shape)}")
    _check_sides(score_log_q[..., 0], human_scores, 1.0)
    if targets is None:
        targets = torch.nn.functional.one_hot(bin_index(human_scores, bins), len(bins))
    elif targets.shape != (*human_scores.shape, len(bins)):
        raise ValueError(f"targets must be [B, 2, K] = {(*human_scores.shape, len(bins))}, got {tuple(targets.shape)}")
    valid = _all_valid(score_log_q[..., 0], valid)
    targets = targets.to(score_log_q).detach().unsqueeze(2)
    counted = valid.unsqueeze(-1) & (
        targets > 0
    )  # a bin without label mass may have log q = -inf: it must not make nan
    log_q = torch.where(counted, score_log_q, torch.zeros_like(score_log_q))
    return -(targets * log_q).sum(-1)


def pointwise_loss(
    score_log_q: Tensor, human_scores: Tensor, bins: Tensor, valid: Tensor | None = None, targets: Tensor | None = None
) -> Tensor:
    """L_CE = -(1/2G) sum_j sum_i log q[j,i](s_j), averaged over pairs and over valid samples only (Eq. 8).

    Args, Raises: as `pointwise_terms`.   Returns: scalar, nats; 0 if no sample is valid."""
    terms = pointwise_terms(score_log_q, human_scores, bins, valid, targets)
    return terms.sum() / _all_valid(terms, valid).sum().clamp_min(1)


def pairwise_loss(
    expected_scores: Tensor, human_scores: Tensor, score_range: float, valid: Tensor | None = None
) -> Tensor:
    """L_pw = (1/(2 G^2 (S_max - S_min))) sum_j sum_i sum_k |gap error|, averaged over pairs and valid samples (Eq. 11).

    Args, Raises: as `pairwise_gap_error`.   Returns: scalar in [0, 2]; 0 if no gap is valid."""
    terms = pairwise_gap_error(expected_scores, human_scores, score_range, valid)
    return terms.sum() / gap_valid(_all_valid(terms, valid)).sum().clamp_min(1)


def _all_valid(like: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return torch.ones_like(like, dtype=torch.bool)
    if valid.shape != like.shape or valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool {tuple(like.shape)}, got {valid.dtype} {tuple(valid.shape)}")
    return valid


def _check_sides(scores: Tensor, human_scores: Tensor, score_range: float) -> None:
    if scores.ndim != 3 or scores.shape[1] != 2 or human_scores.shape != scores.shape[:2]:
        raise ValueError(
            f"expected [B, 2, G] scores and [B, 2] human_scores, got {tuple(scores.shape)} and"
            f" {tuple(human_scores.shape)}"
        )
    if not score_range > 0:
        raise ValueError(f"score_range must be S_max - S_min > 0, got {score_range}")
