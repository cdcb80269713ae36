"""How good a score DISTRIBUTION is: likelihood and CRPS of the annotators' votes, calibration of P(a beats b).

Axes: N items, V annotators, M pairs, K bins. Computed in float64. An item without votes, an empty bin and empty input
give nan.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zr_ray.functional.scores import bin_index


def vote_counts(scores: Tensor, bins: Tensor) -> Tensor:
    """How many annotators chose each bin.

    Args: scores: [N, V] rubric points, each a bin, nan where an annotator is missing. bins: [K] ascending.
    Returns: [N, K] float64 counts.   Raises: ValueError if a score is no bin."""
    present = ~scores.isnan()
    index = bin_index(torch.where(present, scores, bins[0].to(scores)), bins)
    counts = torch.zeros(len(scores), len(bins), dtype=torch.float64, device=scores.device)
    return counts.scatter_add(-1, index, present.double())


def annotator_nll(log_q: Tensor, votes: Tensor) -> Tensor:
    """Mean negative log-likelihood of an item's votes: -(1/V) sum_v log q(s_v). Proper: lowest in expectation for the
    voters' own q.

    Args: log_q: [N, K] normalized, nats. votes: [N, K] counts of `vote_counts`.
    Returns: [N] nats, at least 0 (inf if a vote fell on a bin with q = 0), nan without votes: use nanmean.
    Raises: ValueError if the shapes differ."""
    _check_votes(log_q, votes)
    log_q, votes = log_q.detach().double(), votes.double()
    return -torch.where(votes > 0, votes * log_q, torch.zeros_like(votes)).sum(-1) / votes.sum(-1)


def crps(q: Tensor, bins: Tensor, votes: Tensor) -> Tensor:
    """Continuous ranked probability score of an item's votes, mean over them; for a one-hot q it is the mean absolute
    error.

        CRPS(F, s) = sum_k (s_{k+1} - s_k) (F_k - 1[s <= s_k])^2 = E|X - s| - E|X - X'| / 2,   F_k = sum_{l <= k} q_l

    Args: q: [N, K] probabilities. bins: [K] ascending, rubric points. votes: [N, K] counts of `vote_counts`.
    Returns: [N] rubric points, at least 0, nan without votes: use nanmean.   Raises: ValueError if the shapes
    differ."""
    _check_votes(q, votes)
    q, votes, bins = q.detach().double(), votes.double(), bins.to(q.device).double()
    below = q.cumsum(-1)[:, :-1]
    reached = votes.new_ones(len(bins), len(bins)).triu()[:, :-1]  # [vote's bin, k]: 1[s <= s_k]
    per_bin = ((below.unsqueeze(1) - reached).square() * bins.diff()).sum(-1)
    return (per_bin * votes).sum(-1) / votes.sum(-1)


def reliability_curve(probability: Tensor, outcome: Tensor, bins: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted against observed frequency in equal-width bins of the probability, [i/n, (i+1)/n), the last one closed.

    Args: probability: [M] in [0, 1]. outcome: [M] in [0, 1] (1 happened, 0 did not, 0.5 a tie). bins: n, at least 1.
    Returns: (mean probability [n], mean outcome [n], count [n]) float64; means are nan in empty bins.
    Raises: ValueError if shapes differ or a probability is outside [0, 1] (also nan)."""
    if probability.ndim != 1 or probability.shape != outcome.shape or bins < 1:
        raise ValueError(
            f"need [M], [M] and bins >= 1, got {tuple(probability.shape)}, {tuple(outcome.shape)} and {bins}"
        )
    probability, outcome = probability.detach().double(), outcome.double()
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("every probability must be in [0, 1]; clamp rounding or drop undefined pairs first")
    place = (probability * bins).long().clamp_max(bins - 1)
    zeros = torch.zeros(bins, dtype=torch.float64, device=probability.device)
    count = zeros.index_add(0, place, torch.ones_like(probability))
    return zeros.index_add(0, place, probability) / count, zeros.index_add(0, place, outcome) / count, count


def win_calibration_error(win_probability: Tensor, outcome: Tensor, bins: int = 10) -> float:
    """Expected calibration error of P(a beats b): sum_n (count_n / M) |mean probability_n - mean outcome_n|.

    Which item of a pair is called a is arbitrary, so every pair enters both ways round: swapping sides changes nothing.
    Args: win_probability: [M] of `rank.win_probability`. outcome: [M] 1 if a was preferred, 0 if b, 0.5 if tied. bins:
    at least 1.
    Returns: in [0, 1], nan without pairs.   Raises: as `reliability_curve`."""
    probability, outcome = win_probability.detach().double(), outcome.double()
    both = torch.cat([probability, 1 - probability]), torch.cat([outcome, 1 - outcome])
    predicted, observed, count = reliability_curve(*both, bins=bins)
    if count.sum() == 0:
        return math.nan
    return ((predicted - observed).abs() * count).nansum().item() / count.sum().item()


def _check_votes(q: Tensor, votes: Tensor) -> None:
    if q.ndim != 2 or q.shape != votes.shape:
        raise ValueError(f"distributions and votes must both be [N, K], got {tuple(q.shape)} and {tuple(votes.shape)}")
