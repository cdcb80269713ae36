"""Score distributions: from the score token's log-probabilities to q, mu and training targets (Z-Reward, arXiv
2606.09076, section 3).

Axes: B pairs, J = 2 sides (0 winner, 1 loser), G group, T tokens, K bins, D dimensions; `...` any leading shape.
Scores, means and standard deviations are in rubric points. Bins are given by the caller, ascending, at least two.
Left out on purpose: which token is the score token; the tokenizer side of that is `rubric.label_token_ids`.
"""

from __future__ import annotations

import torch
from torch import Tensor

_OFF_BIN = 1e-4
"""Rubric points. A score this close to a bin is that bin: float32 files round at 1e-7, bins are 0.5 apart."""


def score_log_distribution(label_logprobs: Tensor) -> Tensor:
    """log q: log-softmax over the score bins only ("Q-Align style"; Z-Reward section 3).

        log q_k = l_k - logsumexp_k' l_k'

    Args: label_logprobs: [..., K] logits or full-vocabulary log-probs (nats) of the K label tokens; they differ by a
    constant that cancels.
    Returns: [..., K] log q, nats, exp sums to 1.   Raises: ValueError if K < 2."""
    if label_logprobs.ndim == 0 or label_logprobs.shape[-1] < 2:
        raise ValueError(
            f"label_logprobs needs at least 2 bins on its last axis, got shape {tuple(label_logprobs.shape)}"
        )
    return torch.log_softmax(label_logprobs, dim=-1)


def expected_score(log_q: Tensor, bins: Tensor) -> Tensor:
    """mu = sum_k s_k q_k, the reward and what metrics are computed on (Z-Reward section 3, Eq. 16).

    Args: log_q: [..., K] normalized, nats. bins: [K] ascending, rubric points.
    Returns: [...] in [bins[0], bins[-1]], dtype of log_q, differentiable.   Raises: ValueError if K differs."""
    _check_bins(log_q, bins)
    return (log_q.exp() * bins.to(log_q)).sum(-1)


def score_variance(log_q: Tensor, bins: Tensor) -> Tensor:
    """Variance of the score under q: sum_k (s_k - mu)^2 q_k.

    Args: log_q: [..., K] normalized, nats. bins: [K] ascending, rubric points.
    Returns: [...] rubric points squared, in [0, (bins[-1] - bins[0])^2 / 4].   Raises: ValueError if K differs."""
    mu = expected_score(log_q, bins)
    return (log_q.exp() * (bins.to(log_q) - mu.unsqueeze(-1)).square()).sum(-1)


def score_entropy(log_q: Tensor) -> Tensor:
    """H(q) = -sum_k q_k log q_k; a bin with q = 0 (log q = -inf) adds 0.

    Args: log_q: [..., K] normalized, nats.   Returns: [...] nats, in [0, log K]."""
    return torch.special.entr(log_q.exp()).sum(-1)


def outside_mass(label_logprobs: Tensor) -> Tensor:
    """Probability the judge put on tokens that are no score label: 1 - sum_k p_k. A free sign of broken formatting.

    Args: label_logprobs: [..., K] FULL-vocabulary log-probs (nats), not logits and not log q (that gives 0).
    Returns: [...] clamped to [0, 1]."""
    return (1 - label_logprobs.exp().sum(-1)).clamp(0, 1)


def bin_index(scores: Tensor, bins: Tensor) -> Tensor:
    """Index of the bin that each score is.

    Args: scores: [...] rubric points, each within 1e-4 of a bin. bins: [K] ascending, rubric points.
    Returns: [...] long in [0, K).   Raises: ValueError naming the first score that is no bin (also nan)."""
    distance, index = (scores.double().unsqueeze(-1) - bins.to(scores.device).double()).abs().min(-1)
    off = ~(distance <= _OFF_BIN)
    if off.any():
        raise ValueError(
            f"every score must be one of the bins {bins.tolist()}, got {scores[off].flatten()[0].item()}; "
            "give a soft label (two_hot or gaussian_soft_label) for scores between bins"
        )
    return index


def two_hot(scores: Tensor, bins: Tensor) -> Tensor:
    """Label on the two bins around each score whose mean is the score; one-hot on a bin.

        q_k = (s_{k+1} - s) / (s_{k+1} - s_k),   q_{k+1} = 1 - q_k   for s_k <= s <= s_{k+1}

    Args: scores: [...] rubric points in [bins[0], bins[-1]]. bins: [K] ascending, rubric points.
    Returns: [..., K], at least 0, sums to 1.   Raises: ValueError if a score is off the scale (also nan)."""
    scores = scores if scores.is_floating_point() else scores.float()
    bins = bins.to(scores)
    if not ((scores >= bins[0]) & (scores <= bins[-1])).all():
        bad = scores[~((scores >= bins[0]) & (scores <= bins[-1]))].flatten()[0].item()
        raise ValueError(f"scores must lie in [{bins[0].item()}, {bins[-1].item()}], got {bad}")
    lower = (torch.searchsorted(bins, scores.contiguous(), right=True) - 1).clamp(0, len(bins) - 2)
    upper_weight = (scores - bins[lower]) / (bins[lower + 1] - bins[lower])
    label = scores.new_zeros(*scores.shape, len(bins))
    label.scatter_(-1, lower.unsqueeze(-1), (1 - upper_weight).unsqueeze(-1))
    return label.scatter_(-1, (lower + 1).unsqueeze(-1), upper_weight.unsqueeze(-1))


def gaussian_soft_label(mean: Tensor, std: Tensor, bins: Tensor) -> Tensor:
    """Discretised normal whose sum and mean are corrected to be exact (after DeQA-Score, arXiv 2501.11561, section 3).

        p_k = Phi((s_k + h/2 - mean) / std) - Phi((s_k - h/2 - mean) / std),   h = bin width (0.5)
        q_k = p_k exp(theta s_k) / sum_l p_l exp(theta s_l),   theta such that sum_k s_k q_k = mean

    Departs from the paper: DeQA corrects with q = max(alpha p + beta, 0), which on nine bins leaves a residual in the
    mean (std 0.5: up to 0.10 points for means in [1.5, 4.5]) and narrows wide labels (std 6 gives 1.28 points at mean
    3.0 and 0.99 at 3.2). The tilted p is the distribution of that mean nearest to p in KL: positive, exact, without
    jumps. For std in [0.3, 0.5] and means in [2, 4] the two differ by less than 0.006 per bin.
    `two_hot` where std < h/4 or the mean is an end of the scale: nothing else has that mean.
    Args: mean: [...] float, rubric points in [bins[0], bins[-1]]. std: [...] rubric points, at least 0. bins: [K]
    evenly spaced, ascending.
    Returns: [..., K], at least 0, sums to 1, mean as asked, dtype of mean.   Raises: ValueError on uneven bins,
    negative or nan std, mean off the scale."""
    grid, center, spread = bins.to(mean.device).double(), mean.double(), std.double()
    width = grid[1] - grid[0]
    if not torch.allclose(grid.diff(), width.expand(len(grid) - 1), atol=1e-6):
        raise ValueError(f"gaussian_soft_label needs evenly spaced bins, got {bins.tolist()}; use two_hot")
    if not (spread >= 0).all():
        raise ValueError(f"std must be at least 0, got {spread[~(spread >= 0)].flatten()[0].item()}")
    narrow = two_hot(center, grid)
    safe = spread.clamp_min(width / 4).unsqueeze(-1)
    distance = -(grid - center.unsqueeze(-1)).abs()  # the lower tail keeps its digits
    mass = torch.special.ndtr((distance + width / 2) / safe) - torch.special.ndtr((distance - width / 2) / safe)
    low, high = torch.full_like(center, -400.0), torch.full_like(center, 400.0)
    for _ in range(80):  # bisection for theta (per rubric point); 800 / 2^80 is below float64's resolution
        theta = (low + high) / 2
        label = (mass.log() + theta.unsqueeze(-1) * grid).softmax(-1)
        too_low = label @ grid < center
        low, high = torch.where(too_low, theta, low), torch.where(too_low, high, theta)
    exact = ((label @ grid - center).abs() < 1e-9) & (spread >= width / 4) & (center > grid[0]) & (center < grid[-1])
    return torch.where(exact.unsqueeze(-1), label, narrow).to(mean)


def label_targets(scores: Tensor, kind: str, std: float, bins: Tensor) -> Tensor:
    """Training target of each annotated score, by name.

        "hard"  one-hot on the annotated bin        "two_hot"  `two_hot`        "gaussian"  `gaussian_soft_label` with
        one std for all

    Args: scores: [...] float, rubric points; bins for "hard", anything on the scale otherwise. kind: the name. std:
        rubric points, for "gaussian" only. bins: [K] ascending.
    Returns: [..., K], at least 0, sums to 1, dtype of scores.   Raises: ValueError on an unknown name, or as the
    function it names."""
    if kind == "hard":
        return torch.nn.functional.one_hot(bin_index(scores, bins), len(bins)).to(scores)
    if kind == "two_hot":
        return two_hot(scores, bins)
    if kind == "gaussian":
        return gaussian_soft_label(scores, torch.full_like(scores, std), bins)
    raise ValueError(f'target must be "hard", "two_hot" or "gaussian", got {kind!r}')


def _check_bins(log_q: Tensor, bins: Tensor) -> None:
    if bins.ndim != 1 or log_q.ndim == 0 or log_q.shape[-1] != bins.shape[0]:
        raise ValueError(
            f"log_q needs one entry per bin on its last axis: {tuple(bins.shape)} bins, log_q {tuple(log_q.shape)}"
        )
