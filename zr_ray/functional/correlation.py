"""Correlations of predicted with human scores: PLCC, SRCC, KRCC, and PLCC after the usual 4-parameter logistic.

Axis: N items. Everything is computed in float64. Undefined values are nan, never 0 and never a crash: fewer than 2
items (5 for the logistic), all predictions or all human scores equal (`is_constant`: differences that are rounding do
not count), or anything not finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_KENDALL_CELLS = 4_000_000
"""Cells of the N x N comparison held at once: 32 MB in float64."""
_SIGMOID_CELLS = 1_000_000
"""Candidate curves x items held at once: 8 MB in float64."""

PRECISION, LARGEST_SCORE = 1e-6, 100.0
"""Relative to the largest value, at most to a score of 100 points. Judges compute in float32 (1.2e-7): predictions that
differ by less are a constant, and a correlation with them would be one with rounding errors."""


def is_constant(values: Tensor) -> bool:
    """Whether values [N] vary by no more than their precision; also true of none."""
    if len(values) == 0:
        return True
    return bool(values.max() - values.min() <= PRECISION * values.abs().max().clamp_max(LARGEST_SCORE))


def why_undefined(predicted: Tensor, human: Tensor) -> str | None:
    """Why no correlation of predictions with human scores [N] is defined, in a few words; None if it is."""
    if len(predicted) < 2:
        return "fewer than 2 items"
    if not bool(predicted.isfinite().all() & human.isfinite().all()):
        return "not finite"
    return "constant prediction" if is_constant(predicted) else "constant human score" if is_constant(human) else None


def plcc(predicted: Tensor, human: Tensor) -> float:
    """Pearson's linear correlation, raw: no logistic fit.

    Args: predicted, human: [N].   Returns: in [-1, 1], or nan (see file header).   Raises: ValueError if the shapes
    differ."""
    x, y = _items(predicted, human)
    if _undefined(x, y):
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return max(-1.0, min(1.0, (x @ y / (x.norm() * y.norm())).item()))


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1, equal values share the mean of their places.

    Args: values: [N].   Returns: [N] float64."""
    _, level, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0).double() - (count.double() - 1) / 2)[level]


def srcc(predicted: Tensor, human: Tensor) -> float:
    """Spearman's rank correlation with average ranks for ties.

    Args: predicted, human: [N].   Returns: in [-1, 1], or nan (see file header).   Raises: ValueError if the shapes
    differ."""
    x, y = _items(predicted, human)
    return math.nan if _undefined(x, y) else plcc(average_ranks(x), average_ranks(y))


def krcc(predicted: Tensor, human: Tensor) -> float:
    """Kendall's tau-b: (C - D) / sqrt((pairs untied in x) (pairs untied in y)). O(N^2) time, bounded memory.

    Args: predicted, human: [N].   Returns: in [-1, 1], or nan (see file header).   Raises: ValueError if the shapes
    differ."""
    x, y = _items(predicted, human)
    if _undefined(x, y):
        return math.nan
    agreement, untied_x, untied_y = 0.0, 0.0, 0.0
    for rows in torch.arange(len(x), device=x.device).split(max(1, _KENDALL_CELLS // len(x))):
        sign_x, sign_y = (x[rows, None] - x).sign(), (y[rows, None] - y).sign()
        agreement += (sign_x * sign_y).sum().item()
        untied_x += sign_x.abs().sum().item()
        untied_y += sign_y.abs().sum().item()
    return agreement / math.sqrt(untied_x * untied_y)


def logistic4_plcc(predicted: Tensor, human: Tensor) -> float:
    """PLCC after fitting the 4-parameter logistic of the VQEG reports by least squares.

        f(x) = b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|))

    For a given center b3 and scale |b4| the best b1, b2 are a linear regression, and the fit's PLCC is the correlation
    of the bare sigmoid with the human scores. So b3 and |b4| alone are searched: a grid, then a pattern search to 1e-7
    standard deviations, without start values, plateaus or singular steps. |b4| stays in [0.001, 100] standard
    deviations of x, from a step to a straight line, hence the result is below |PLCC| by at most 1e-4. Measured against
    scipy's curve_fit on 200 random sets with signal: equal or better for N of 100 and 1000, at most 5e-4 worse for N of
    10 and 30; on pure noise each finds optima the other misses (up to 0.03). A falling fit keeps its sign, departing
    from common scripts, which report an anti-correlated judge as a good one.
    Args: predicted, human: [N], N at least 5.   Returns: in [-1, 1], or nan (see file header).
    Raises: ValueError if the shapes differ."""
    x, y = _items(predicted, human)
    if _undefined(x, y) or len(x) < 5:
        return math.nan
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / (y - y.mean()).norm()
    outside = x.new_tensor([1.0, 3.0, 10.0, 30.0, 100.0])
    centers = torch.cat([x.min() - outside, torch.quantile(x, torch.linspace(0, 1, 33).to(x)), x.max() + outside])
    narrowest, widest = math.log(0.001), math.log(100)
    center, log_scale, best = _best_sigmoid(x, y, centers, torch.linspace(narrowest, widest, 24).to(x))
    step, moves = 0.25, torch.linspace(-1, 1, 7).to(x)
    for _ in range(100):
        reach = step * max(1.0, abs(center))
        scales = (log_scale + step * moves).clamp(narrowest, widest)
        new_center, new_log_scale, new = _best_sigmoid(
            x, y, (center + reach * moves).clamp(x.min() - 100, x.max() + 100), scales
        )
        improved = abs(new) > abs(best) + 1e-13
        on_edge = abs(new_center - center) > 0.9 * reach or abs(new_log_scale - log_scale) > 0.9 * step
        if abs(new) > abs(best):
            center, log_scale, best = new_center, new_log_scale, new
        if not (improved and on_edge):
            step /= 3
        if step < 1e-7:
            break
    return best


def _best_sigmoid(x: Tensor, y: Tensor, centers: Tensor, log_scales: Tensor) -> tuple[float, float, float]:
    """(center, log scale, correlation with y) of the sigmoid of x that correlates most, up to sign. y: mean 0, norm
    1."""
    best = (centers[0].item(), log_scales[0].item(), 0.0)
    for part in centers.split(max(1, _SIGMOID_CELLS // (len(log_scales) * len(x)))):
        curve = torch.sigmoid((x - part[:, None, None]) * (-log_scales).exp().unsqueeze(-1))
        curve = curve - curve.mean(-1, keepdim=True)
        power = curve.norm(dim=-1)
        correlation = torch.where(power > 1e-9, curve @ y / power, torch.zeros_like(power))
        place = correlation.abs().argmax().item()
        value, row, column = correlation.flatten()[place].item(), place // len(log_scales), place % len(log_scales)
        if abs(value) > abs(best[2]):
            best = (part[row].item(), log_scales[column].item(), max(-1.0, min(1.0, value)))
    return best


def _items(predicted: Tensor, human: Tensor) -> tuple[Tensor, Tensor]:
    if predicted.ndim != 1 or predicted.shape != human.shape:
        raise ValueError(f"predicted and human must both be [N], got {tuple(predicted.shape)} and {tuple(human.shape)}")
    return predicted.detach().double(), human.detach().double()


def _undefined(x: Tensor, y: Tensor) -> bool:
    return why_undefined(x, y) is not None
