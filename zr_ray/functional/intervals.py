"""Percentile bootstrap intervals that resample PROMPTS: pairs and images of one prompt are not independent.

Axes: N items, P prompts, R resamples. Every function with the same P, resamples and seed sees the same draws, so two
judges on the same items can be compared. Resamples in which a statistic is undefined are left out; fewer than 2
prompts, or none defined, give (nan, nan).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zr_ray.functional.draws import (
    CELLS,
    correlation_of_sums,
    percentile_interval,
    prompt_draws,
    resampled_ratios,
    standard_items,
)


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
        for draws in prompt_draws(len(prompts), resamples, seed, group)
        for times in draws
    ]
    return percentile_interval(torch.tensor(values, dtype=torch.float64), level)


def ratio_interval(
    correct: Tensor, total: Tensor, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of sum(correct) / sum(total), such as HPA from `hpa_by_group`.

    Args: correct, total: [P] per prompt. resamples, seed, level: as `bootstrap_interval`.
    Returns: (low, high).   Raises: ValueError if shapes differ or a setting is out of range."""
    return percentile_interval(resampled_ratios(correct, total, resamples, seed), level)


def plcc_interval(
    predicted: Tensor, human: Tensor, group: Tensor, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of PLCC from per-prompt sums of (1, x, y, x^2, y^2, xy): no resample touches the items.

    Args: predicted, human: [N]. group: [N] long. The rest: as `bootstrap_interval`.
    Returns: (low, high).   Raises: ValueError if shapes differ or a setting is out of range."""
    x, y, prompts, place = standard_items(predicted, human, group)
    moments = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], -1)
    if prompts == 0:
        return math.nan, math.nan
    sums = torch.zeros(prompts, 6, dtype=torch.float64, device=x.device).index_add(0, place, moments)
    return percentile_interval(
        correlation_of_sums(torch.cat([d @ sums for d in prompt_draws(prompts, resamples, seed, group)])), level
    )


def srcc_interval(
    predicted: Tensor, human: Tensor, group: Tensor, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of SRCC: average ranks are taken again in every resample, from the weights of the sorted levels, without
    sorting.

    Args: predicted, human: [N]. group: [N] long. The rest: as `bootstrap_interval`.
    Returns: (low, high).   Raises: ValueError if shapes differ or a setting is out of range."""
    x, y, prompts, place = standard_items(predicted, human, group)
    if prompts == 0:
        return math.nan, math.nan
    values = []
    for draws in prompt_draws(prompts, resamples, seed, group):
        for part in draws.split(max(1, CELLS // max(1, len(x)))):
            weight = part[:, place]
            rank_x, rank_y = _weighted_ranks(x, weight), _weighted_ranks(y, weight)
            parts = (torch.ones_like(rank_x), rank_x, rank_y, rank_x**2, rank_y**2, rank_x * rank_y)
            values.append(correlation_of_sums(torch.stack([(weight * part).sum(-1) for part in parts], -1)))
    return percentile_interval(torch.cat(values), level)


def _weighted_ranks(values: Tensor, weight: Tensor) -> Tensor:
    """[R, N] average rank of each item among items repeated `weight` times, centered and scaled to about [-1, 1]."""
    levels, level = values.unique(return_inverse=True)
    counts = weight.new_zeros(len(weight), len(levels)).index_add(1, level, weight)
    ranks = counts.cumsum(-1) - (counts - 1) / 2
    half = (weight.sum(-1, keepdim=True) + 1) / 2
    return (ranks / half - 1)[:, level]


def defined(value: Tensor | float) -> float | None:
    """The value as JSON takes it: None for nan and infinities."""
    return float(value) if math.isfinite(float(value)) else None


def defined_interval(bounds: tuple[float, float]) -> list[float] | None:
    """[low, high] as JSON takes it: None unless both are finite."""
    return list(bounds) if all(map(math.isfinite, bounds)) else None
