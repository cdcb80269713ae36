"""Sums by name, over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

ReduceSum = Callable[[Sequence[float]], list[float]]


def reduced(sums: dict[str, float], reduce_sum: ReduceSum) -> dict[str, float]:
    """Values summed over ranks, key by key; every rank must bring the same keys."""
    names = sorted(sums)
    return dict(zip(names, reduce_sum([sums[n] for n in names]), strict=True))
