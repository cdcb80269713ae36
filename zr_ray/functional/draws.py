"""What every bootstrap interval is made of: resamples of PROMPTS, statistics from sums over them, percentile_interval.

Axes: N items, P prompts, R resamples. The draws depend on P, resamples and seed only, so two judges on the same items
can be compared draw by draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from zr_ray.functional.correlation import is_constant

CELLS = 2_000_000
"""Resamples x items held at once: 16 MB per float64 array."""


def resampled_ratios(correct: Tensor, total: Tensor, resamples: int = 2000, seed: int = 0) -> Tensor:
    """sum(correct) / sum(total) in every resample of prompts, such as HPA from `hpa_by_group`.

    Args: correct, total: [P] per prompt. resamples: at least 1. seed: of the draws.
    Returns: [R] (empty below 2 prompts), nan where the total is 0.   Raises: ValueError if shapes differ or resamples <
    1."""
    if correct.ndim != 1 or correct.shape != total.shape:
        raise ValueError(f"correct and total must both be [P], got {tuple(correct.shape)} and {tuple(total.shape)}")
    counts = torch.stack([correct.double(), total.double()], -1)
    sums = torch.cat([draws @ counts for draws in prompt_draws(len(counts), resamples, seed, counts)])
    return sums[:, 0] / sums[:, 1]  # 0 / 0 is nan: undefined


def prompt_draws(prompts: int, resamples: int, seed: int, like: Tensor) -> Iterator[Tensor]:
    """[r, P] float64 how often each prompt was drawn, in parts that add up to R rows; nothing is drawn from fewer than
    2 prompts."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    generator = torch.Generator().manual_seed(seed)
    if prompts < 2:
        yield torch.empty(0, prompts, dtype=torch.float64, device=like.device)
        return
    for rows in torch.arange(resamples).split(max(1, CELLS // prompts)):
        drawn = torch.randint(prompts, (len(rows), prompts), generator=generator)
        counts = torch.zeros(len(rows), prompts, dtype=torch.float64)
        yield counts.scatter_add(-1, drawn, torch.ones_like(drawn, dtype=torch.float64)).to(like.device)


def correlation_of_sums(sums: Tensor) -> Tensor:
    """[R] Pearson's r from [R, 6] sums of (1, x, y, x^2, y^2, xy) of roughly standardized values; nan where one does
    not vary."""
    count, x, y, xx, yy, xy = sums.unbind(-1)
    spread_x, spread_y = xx / count - (x / count) ** 2, yy / count - (y / count) ** 2
    varies = (spread_x > 1e-12) & (spread_y > 1e-12)  # rounding leaves about 1e-16
    value = (xy / count - x * y / count**2) / (spread_x * spread_y).sqrt()
    return torch.where(varies, value.clamp(-1, 1), torch.full_like(value, math.nan))


def standard_items(predicted: Tensor, human: Tensor, group: Tensor) -> tuple[Tensor, Tensor, int, Tensor]:
    """Standardized x and y, number of prompts (0 if the correlation is undefined), [N] prompt index."""
    if predicted.ndim != 1 or not predicted.shape == human.shape == group.shape:
        raise ValueError(
            f"predicted, human and group must all be [N], got {[tuple(t.shape) for t in (predicted, human, group)]}"
        )
    prompts, place = group.unique(return_inverse=True)
    x, y = predicted.detach().double(), human.double()
    if len(x) < 2 or not all(bool(v.isfinite().all()) and not is_constant(v) for v in (x, y)):
        return x, y, 0, place  # undefined in every resample: draw none
    return (x - x.mean()) / x.std(), (y - y.mean()) / y.std(), len(prompts), place


def percentile_interval(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values, for example of a difference of two judges' values on the same draws.

    Args: values: [R], nan where undefined. level: in (0, 1).
    Returns: (low, high), nan if nothing is defined.   Raises: ValueError if level is out of range."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    values = values[values.isfinite()].cpu()
    if len(values) == 0:
        return math.nan, math.nan
    tail = (1 - level) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
