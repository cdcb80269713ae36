"""Same-prompt pairs: human pairwise accuracy (HPA, Z-Reward section 5), its margin version, and accuracy that knows
ties.

Axes: N items, M pairs, P prompts (groups). Items of one group are compared with one another and with no others; pooled
over dimensions, a group is one (prompt, dimension) and the cluster is the prompt. Compared in float64.
Empty input and single-item groups have no pairs: counts are 0 and every rate made of them is nan, never 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SAME = 1e-6
"""Rubric points. Human means such as 11/3 carry rounding, predictions that of float32; gaps that differ by less are the
same (scores of 5 raters differ by 0.1)."""


def pair_indices(group: Tensor) -> tuple[Tensor, Tensor]:
    """Every unordered pair of items of one group, once.

    Args: group: [N] long, any labels.   Returns: (first, second), both [M] long indices of items, M = sum_p n_p (n_p -
    1) / 2."""
    order = group.argsort(stable=True)
    _, sizes = group[order].unique_consecutive(return_counts=True)
    starts = sizes.cumsum(0) - sizes
    first, second = [order[:0]], [order[:0]]
    for size in sizes.unique().tolist():
        members = order[starts[sizes == size, None] + torch.arange(size, device=group.device)]
        a, b = torch.triu_indices(size, size, 1, device=group.device)
        first.append(members[:, a].flatten())
        second.append(members[:, b].flatten())
    return torch.cat(first), torch.cat(second)


def hpa_by_group(
    predicted: Tensor, human: Tensor, group: Tensor, min_gap: float = 0.0, cluster: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Correctly ranked and counted pairs of each prompt; their sums' ratio is HPA, `ratio_interval` its interval.

    A pair counts if its human gap is above min_gap; it is correct if the prediction ranks it the same way, strictly: a
    predicted tie (a difference below 1e-6 points, which is rounding; also nan) is wrong.
    Args: predicted, human: [N] rubric points (human may be nan: no pairs). group: [N] long. min_gap: rubric points,
        exclusive; 0 counts all untied pairs, 0.5 is margin HPA. cluster: [N] long, what the counts are added over;
        None: the group.
    Returns: (correct [P], total [P]) float64 counts in ascending order of the P cluster labels, prompts without pairs
    included.
    Raises: ValueError if shapes differ or a group lies in two clusters."""
    _check_items(predicted, human, group)
    cluster = group if cluster is None else cluster
    labels, place = cluster.unique(return_inverse=True)
    a, b = pair_indices(group)
    if not (cluster[a] == cluster[b]).all():
        raise ValueError("every group must lie inside one cluster: its pairs are resampled together")
    predicted, gap = predicted.detach().double(), human.double()[a] - human.double()[b]
    counted = gap.abs() > min_gap + _SAME
    correct = counted & ((predicted[a] - predicted[b]) * gap.sign() > _SAME)
    zeros = torch.zeros(len(labels), dtype=torch.float64, device=group.device)
    return zeros.index_add(0, place[a], correct.double()), zeros.index_add(0, place[a], counted.double())


def human_pair_accuracy(predicted: Tensor, human: Tensor, group: Tensor, min_gap: float = 0.0) -> tuple[int, int]:
    """(correct, total) same-prompt pairs; HPA = correct / total, undefined (nan) if total is 0.

    Args, Raises: as `hpa_by_group`.   Returns: two counts."""
    correct, total = hpa_by_group(predicted, human, group, min_gap)
    return int(correct.sum()), int(total.sum())


def tie_threshold(predicted: Tensor, human: Tensor, group: Tensor) -> float:
    """The threshold of `pair_accuracy_with_ties` that is best on these items (Deutsch et al., arXiv 2305.14324, tie
    calibration).

    Args: predicted, human: [N] rubric points. group: [N] long.
    Returns: rubric points, at least 0, the smallest of equally good ones; nan without pairs.   Raises: ValueError if
    shapes differ."""
    distance, same_way, human_tie = _pair_outcomes(predicted, human, group)
    if len(distance) == 0:
        return math.nan
    distance, order = distance.sort()
    # Raising the threshold to distance[m] turns pairs 0..m into predicted ties: tied humans become right, concordant
    # pairs wrong.
    change = human_tie[order].double() - same_way[order].double()
    gained = change.cumsum(0)
    last_of_equal = torch.cat([distance[1:] > distance[:-1], torch.ones(1, dtype=torch.bool, device=distance.device)])
    last_of_equal &= distance.isfinite()
    candidates, gained = distance[last_of_equal], gained[last_of_equal]
    if len(candidates) == 0:
        return 0.0
    at_zero = gained[0].item() if candidates[0] == 0 else 0.0
    best = gained.argmax()
    return candidates[best].item() if gained[best] > at_zero else 0.0


def pair_accuracy_with_ties(predicted: Tensor, human: Tensor, group: Tensor, threshold: float) -> tuple[int, int]:
    """(correct, total) over ALL same-prompt pairs, a prediction within the threshold being a tie (Deutsch et al., arXiv
    2305.14324).

        acc = (concordant + tied in both) / all pairs

    Args: predicted, human: [N] rubric points. group: [N] long. threshold: rubric points, at least 0, inclusive.
    Returns: two counts.   Raises: ValueError if shapes differ."""
    distance, same_way, human_tie = _pair_outcomes(predicted, human, group)
    predicted_tie = distance <= threshold
    return int(torch.where(predicted_tie, human_tie, same_way).sum()), len(distance)


def tie_aware_accuracy(predicted: Tensor, human: Tensor, group: Tensor, dev: Tensor) -> tuple[float, float]:
    """Tie-calibrated pairwise accuracy, the threshold chosen on the dev half and the accuracy taken on the other.

    Departs from common scripts, which choose the threshold on the data they report.
    Args: predicted, human: [N] rubric points. group: [N] long. dev: [N] bool, whole groups.
    Returns: (accuracy on the rest in [0, 1], threshold in rubric points); nan where a half has no pairs.
    Raises: ValueError if shapes differ or a group lies in both halves."""
    _check_items(predicted, human, group)
    if torch.isin(group[dev], group[~dev]).any():
        raise ValueError("dev must take whole groups: a prompt in both halves leaks its scores")
    threshold = tie_threshold(predicted[dev], human[dev], group[dev])
    correct, total = pair_accuracy_with_ties(predicted[~dev], human[~dev], group[~dev], threshold)
    return (correct / total if total and not math.isnan(threshold) else math.nan), threshold


def _pair_outcomes(predicted: Tensor, human: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per pair: |predicted gap| (inf if nan), whether it has the sign of an untied human gap, whether the humans tie.
    Nan humans go."""
    _check_items(predicted, human, group)
    a, b = pair_indices(group)
    gap = human.double()[a] - human.double()[b]
    known = ~gap.isnan()
    predicted_gap, gap = (predicted.detach().double()[a] - predicted.detach().double()[b])[known], gap[known]
    human_tie = gap.abs() <= _SAME
    distance = torch.where(predicted_gap.isnan(), torch.full_like(gap, torch.inf), predicted_gap.abs())
    return distance, ~human_tie & (predicted_gap * gap > 0), human_tie


def _check_items(predicted: Tensor, human: Tensor, group: Tensor) -> None:
    if predicted.ndim != 1 or not predicted.shape == human.shape == group.shape:
        shapes = [tuple(t.shape) for t in (predicted, human, group)]
        raise ValueError(f"predicted, human and group must all be [N], got {shapes}")
