"""Percentile bootstrap intervals that resample PROMPTS: pairs and images of one prompt are not independent.

Axes: N items, P prompts, R resamples. Every function with the same P, resamples and seed sees the same draws, so two
judges on the same items can be compared. Resamples in which a statistic is undefined are left out; fewer than 2
prompts, or none defined, give (nan, nan).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_CELLS = 2_000_000
"""Resamples x items held at once: 16 MB per float64 array."""


def bootstrap_interval(
    statistic: Callable[[Tensor], float], group: Tensor, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of any statistic of items, by loop.

    An item drawn n times appears n times in the index. A statistic that compares items inside a prompt would then count
    its pairs n^2 times: for those use `ratio_interval`.
    Args: statistic: [n] long indices of items -> float (nan: undefined). group: [N] long, prompt of each item.
        resamples: at least 1. seed: of the draws. level: in (0, 1).
    Returns: (low, high).   Raises: ValueError on resamples or level out of range."""
    prompts, place = group.unique(return_inverse=True)
    items = torch.arange(len(group), device=group.device)
    values = [
        statistic(items.repeat_interleave(times[place].long()))
        for draws in _prompt_draws(len(prompts), resamples, seed, group)
        for times in draws
    ]
    return _percentiles(torch.tensor(values, dtype=torch.float64), level)


def ratio_interval(
    correct: Tensor, total: Tensor, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of sum(correct) / sum(total), such as HPA from `hpa_by_group`.

    Args: correct, total: [P] per prompt. resamples, seed, level: as `bootstrap_interval`.
    Returns: (low, high).   Raises: ValueError if shapes differ or a setting is out of range."""
    return _percentiles(_resampled_ratios(correct, total, resamples, seed), level)


def paired_ratio_difference_interval(
    correct_a: Tensor,
    total_a: Tensor,
    correct_b: Tensor,
    total_b: Tensor,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of ratio a minus ratio b for two judges on the same prompts, both seeing the same draws.

    Args: correct_a, total_a, correct_b, total_b: [P], same prompts in the same order. The rest: as
    `bootstrap_interval`.
    Returns: (low, high); an interval without 0 is a difference.   Raises: ValueError if shapes differ or a setting is
    out of range."""
    if correct_a.shape != correct_b.shape:
        raise ValueError(f"both judges need the same prompts, got {correct_a.shape[0]} and {correct_b.shape[0]}")
    a = _resampled_ratios(correct_a, total_a, resamples, seed)
    return _percentiles(a - _resampled_ratios(correct_b, total_b, resamples, seed), level)


def plcc_interval(
    predicted: Tensor, human: Tensor, group: Tensor, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of PLCC from per-prompt sums of (1, x, y, x^2, y^2, xy): no resample touches the items.

    Args: predicted, human: [N]. group: [N] long. The rest: as `bootstrap_interval`.
    Returns: (low, high).   Raises: ValueError if shapes differ or a setting is out of range."""
    x, y, prompts, place = _standard_items(predicted, human, group)
    moments = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], -1)
    if prompts == 0:
        return math.nan, math.nan
    sums = torch.zeros(prompts, 6, dtype=torch.float64, device=x.device).index_add(0, place, moments)
    return _percentiles(
        _correlation(torch.cat([d @ sums for d in _prompt_draws(prompts, resamples, seed, group)])), level
    )


def srcc_interval(
    predicted: Tensor, human: Tensor, group: Tensor, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of SRCC: average ranks are taken again in every resample, from the weights of the sorted levels, without
    sorting.

    Args: predicted, human: [N]. group: [N] long. The rest: as `bootstrap_interval`.
    Returns: (low, high).   Raises: ValueError if shapes differ or a setting is out of range."""
    x, y, prompts, place = _standard_items(predicted, human, group)
    if prompts == 0:
        return math.nan, math.nan
    values = []
    for draws in _prompt_draws(prompts, resamples, seed, group):
        for part in draws.split(max(1, _CELLS // max(1, len(x)))):
            weight = part[:, place]
            rank_x, rank_y = _weighted_ranks(x, weight), _weighted_ranks(y, weight)
            parts = (torch.ones_like(rank_x), rank_x, rank_y, rank_x**2, rank_y**2, rank_x * rank_y)
            values.append(_correlation(torch.stack([(weight * part).sum(-1) for part in parts], -1)))
    return _percentiles(torch.cat(values), level)


def _weighted_ranks(values: Tensor, weight: Tensor) -> Tensor:
    """[R, N] average rank of each item among the items repeated `weight` times, centred and scaled to about [-1, 1]."""
    levels, level = values.unique(return_inverse=True)
    counts = weight.new_zeros(len(weight), len(levels)).index_add(1, level, weight)
    ranks = counts.cumsum(-1) - (counts - 1) / 2
    half = (weight.sum(-1, keepdim=True) + 1) / 2
    return (ranks / half - 1)[:, level]


def _resampled_ratios(correct: Tensor, total: Tensor, resamples: int, seed: int) -> Tensor:
    if correct.ndim != 1 or correct.shape != total.shape:
        raise ValueError(f"correct and total must both be [P], got {tuple(correct.shape)} and {tuple(total.shape)}")
    counts = torch.stack([correct.double(), total.double()], -1)
    sums = torch.cat([draws @ counts for draws in _prompt_draws(len(counts), resamples, seed, counts)])
    return sums[:, 0] / sums[:, 1]  # 0 / 0 is nan: undefined


def _prompt_draws(prompts: int, resamples: int, seed: int, like: Tensor) -> Iterator[Tensor]:
    """[r, P] float64 how often each prompt was drawn, in parts that add up to R rows; nothing is drawn from fewer than
    2 prompts."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    generator = torch.Generator().manual_seed(seed)
    if prompts < 2:
        yield torch.empty(0, prompts, dtype=torch.float64, device=like.device)
        return
    for rows in torch.arange(resamples).split(max(1, _CELLS // prompts)):
        drawn = torch.randint(prompts, (len(rows), prompts), generator=generator)
        counts = torch.zeros(len(rows), prompts, dtype=torch.float64)
        yield counts.scatter_add(-1, drawn, torch.ones_like(drawn, dtype=torch.float64)).to(like.device)


def _correlation(sums: Tensor) -> Tensor:
    """[R] Pearson's r from [R, 6] sums of (1, x, y, x^2, y^2, xy) of roughly standardised values; nan where one does
    not vary."""
    count, x, y, xx, yy, xy = sums.unbind(-1)
    spread_x, spread_y = xx / count - (x / count) ** 2, yy / count - (y / count) ** 2
    varies = (spread_x > 1e-12) & (spread_y > 1e-12)  # rounding leaves about 1e-16
    value = (xy / count - x * y / count**2) / (spread_x * spread_y).sqrt()
    return torch.where(varies, value.clamp(-1, 1), torch.full_like(value, math.nan))


def _standard_items(predicted: Tensor, human: Tensor, group: Tensor) -> tuple[Tensor, Tensor, int, Tensor]:
    """Standardised x and y, number of prompts (0 if the correlation is undefined), [N] prompt index."""
    if predicted.ndim != 1 or not predicted.shape == human.shape == group.shape:
        raise ValueError(
            f"predicted, human and group must all be [N], got {[tuple(t.shape) for t in (predicted, human, group)]}"
        )
    prompts, place = group.unique(return_inverse=True)
    x, y = predicted.detach().double(), human.double()
    if len(x) < 2 or not all(bool(v.isfinite().all() & (v.min() < v.max())) for v in (x, y)):
        return x, y, 0, place  # undefined in every resample: draw none
    return (x - x.mean()) / x.std(), (y - y.mean()) / y.std(), len(prompts), place


def _percentiles(values: Tensor, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    values = values[values.isfinite()].cpu()
    if len(values) == 0:
        return math.nan, math.nan
    tail = (1 - level) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
