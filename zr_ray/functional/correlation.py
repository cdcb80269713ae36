"""Correlations of predicted with human scores: PLCC, SRCC, KRCC, and PLCC after the usual 4-parameter logistic.

Axis: N items. Everything is computed in float64. Undefined values are nan, never 0 and never a crash: fewer than 2 items (5 for the
logistic), all predictions or all human scores equal, or anything not finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_KENDALL_CELLS = 4_000_000
"""Cells of the N x N comparison held at once: 32 MB in float64."""


def plcc(predicted: Tensor, human: Tensor) -> float:
    """Pearson's linear correlation, raw: no logistic fit.

    Args: predicted, human: [N].   Returns: in [-1, 1], or nan (see file header).   Raises: ValueError if the shapes differ."""
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

    Args: predicted, human: [N].   Returns: in [-1, 1], or nan (see file header).   Raises: ValueError if the shapes differ."""
    x, y = _items(predicted, human)
    return math.nan if _undefined(x, y) else plcc(average_ranks(x), average_ranks(y))


def krcc(predicted: Tensor, human: Tensor) -> float:
    """Kendall's tau-b: (C - D) / sqrt((pairs untied in x) (pairs untied in y)). O(N^2) time, bounded memory.

    Args: predicted, human: [N].   Returns: in [-1, 1], or nan (see file header).   Raises: ValueError if the shapes differ."""
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

    Levenberg-Marquardt from the best of a grid of (b3, b4); |b4| is kept in [0.001, 100] standard deviations of x, from a step to a
    straight line, so the result is never below |PLCC| by more than 1e-4. A falling fit keeps its sign: departs from common
    scripts, which report an anti-correlated judge as a good one.
    Args: predicted, human: [N], N at least 5.   Returns: in [-1, 1], or nan (see file header).   Raises: ValueError if the shapes differ."""
    x, y = _items(predicted, human)
    if _undefined(x, y) or len(x) < 5:
        return math.nan
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    parameters = _logistic_start(x, y)
    fitted, error = _logistic_error(parameters, x, y)
    damping = 1e-3
    for _ in range(300):
        step = _marquardt_step(parameters, x, y - fitted, damping)
        proposal = parameters + step
        proposal[2] = proposal[2].clamp(x.min() - 10, x.max() + 10)
        proposal[3] = proposal[3].clamp(math.log(0.001), math.log(100))
        new_fitted, new_error = _logistic_error(proposal, x, y)
        if new_error < error:
            small = error - new_error <= 1e-15 * error
            parameters, fitted, error, damping = proposal, new_fitted, new_error, max(damping / 5, 1e-12)
            if small:
                break
        elif damping > 1e12:
            break
        else:
            damping *= 4
    return plcc(fitted, y) * (1 if parameters[1] >= 0 else -1)


def _logistic_start(x: Tensor, y: Tensor) -> Tensor:
    """[4] (floor, height, centre, log scale): best of 9 x 7 centres and scales with floor and height solved linearly."""
    centres = torch.quantile(x, torch.linspace(0.05, 0.95, 9, dtype=x.dtype, device=x.device))
    scales = x.new_tensor([0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0])
    centre, scale = (grid.flatten() for grid in torch.meshgrid(centres, scales, indexing="ij"))
    curve = torch.sigmoid((x - centre[:, None]) / scale[:, None])
    spread = curve - curve.mean(-1, keepdim=True)
    power = spread.square().sum(-1)
    explained = torch.where(power > 0, (spread @ y).square() / power, -torch.ones_like(power))
    best = explained.argmax()
    height = (spread[best] @ y) / power[best]
    return torch.stack([y.mean() - height * curve[best].mean(), height, centre[best], scale[best].log()])


def _logistic_error(parameters: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    floor, height, centre, log_scale = parameters
    fitted = floor + height * torch.sigmoid((x - centre) * (-log_scale).exp())
    return fitted, (y - fitted).square().sum().item()


def _marquardt_step(parameters: Tensor, x: Tensor, residual: Tensor, damping: float) -> Tensor:
    _, height, centre, log_scale = parameters
    z = (x - centre) * (-log_scale).exp()
    curve = torch.sigmoid(z)
    slope = height * curve * (1 - curve)
    jacobian = torch.stack([torch.ones_like(x), curve, -slope * (-log_scale).exp(), -slope * z], -1)
    normal = jacobian.T @ jacobian
    diagonal = normal.diagonal().clamp_min(1e-12)
    return torch.linalg.solve(normal + damping * torch.diag(diagonal), jacobian.T @ residual)


def _items(predicted: Tensor, human: Tensor) -> tuple[Tensor, Tensor]:
    if predicted.ndim != 1 or predicted.shape != human.shape:
        raise ValueError(f"predicted and human must both be [N], got {tuple(predicted.shape)} and {tuple(human.shape)}")
    return predicted.detach().double(), human.detach().double()


def _undefined(x: Tensor, y: Tensor) -> bool:
    return len(x) < 2 or not bool(x.isfinite().all() & y.isfinite().all()) or bool((x.min() == x.max()) | (y.min() == y.max()))
