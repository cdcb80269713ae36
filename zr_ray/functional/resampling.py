"""Resampled statistics themselves, so that two judges' can be subtracted draw by draw, and intervals of statistics that
pair items.

Axes: N items, P prompts, R resamples, F sums. Draws are those of `draws.py`: same P, resamples and seed, same
prompts drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zr_ray.functional.draws import CELLS, correlation_of_sums, percentile_interval, prompt_draws, standard_items


def resampled_plcc(predicted: Tensor, human: Tensor, group: Tensor, resamples: int = 2000, seed: int = 0) -> Tensor:
    """PLCC in every resample of prompts. Items without a prediction or human score take no part; their prompts stay in
    the draws.

    Args: predicted, human: [N] rubric points, nan = none. group: [N] long, prompt of each item. resamples, seed: as
    above.
    Returns: [R] (empty if undefined everywhere), nan where undefined.   Raises: ValueError if shapes differ or
    resamples < 1."""
    known = predicted.isfinite() & human.isfinite()
    prompts, place = group.unique(return_inverse=True)
    x, y, defined, _ = standard_items(predicted[known], human[known], group[known])
    if defined == 0:
        return torch.empty(0, dtype=torch.float64)
    moments = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], -1)
    sums = torch.zeros(len(prompts), 6, dtype=torch.float64).index_add(0, place[known], moments)
    draws = prompt_draws(len(prompts), resamples, seed, group)
    return torch.cat([correlation_of_sums(part @ sums) for part in draws])


def sums_interval(
    sums: Tensor, statistic: Callable[[Tensor], Tensor], resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of a statistic that depends on the items through sums over them, such as a binned calibration error.

    Args: sums: [P, F] per prompt. statistic: [R, F] resampled sums -> [R]. The rest: as `bootstrap_interval`.
    Returns: (low, high).   Raises: ValueError if a setting is out of range."""
    draws = prompt_draws(len(sums), resamples, seed, sums)
    return percentile_interval(torch.cat([statistic(part @ sums.double()) for part in draws]), level)


def krcc_interval(
    predicted: Tensor, human: Tensor, group: Tensor, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of Kendall's tau-b: concordance is added up once per pair of prompts, and a resample weighs those P x P
    sums.

        tau_r = d A d / sqrt(d X d  d Y d),   A[p,q] = sum_{i in p, j in q} sign(x_i - x_j) sign(y_i - y_j),   d = times
        drawn

    Args: predicted, human: [N]. group: [N] long. The rest: as `bootstrap_interval`.
    Returns: (low, high).   Raises: ValueError if shapes differ or a setting is out of range."""
    x, y, prompts, place = standard_items(predicted, human, group)
    if prompts == 0:
        return math.nan, math.nan
    totals = x.new_zeros(3, prompts, prompts)
    for rows in torch.arange(len(x)).split(max(1, CELLS // len(x))):
        sign_x, sign_y = (x[rows, None] - x).sign(), (y[rows, None] - y).sign()
        for n, cells in enumerate((sign_x * sign_y, sign_x.abs(), sign_y.abs())):
            by_prompt = x.new_zeros(len(rows), prompts).index_add(1, place, cells)
            totals[n].index_add_(0, place[rows], by_prompt)
    values = []
    for draws in prompt_draws(prompts, resamples, seed, group):
        agreement, untied_x, untied_y = (((draws @ total) * draws).sum(-1) for total in totals)
        values.append(agreement / (untied_x * untied_y).sqrt())  # 0 / 0 is nan: undefined
    return percentile_interval(torch.cat(values), level)
