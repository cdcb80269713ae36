"""Krippendorff's alpha: how far raters agree beyond chance, with any number of raters, missing votes allowed.

Source: Hayes and Krippendorff, "Answering the Call for a Standard Reliability Measure for Coding Data", 2007.
Axes: R raters, U units.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def krippendorff_alpha(votes: Tensor, scale: Literal["nominal", "interval"] = "interval") -> float:
    """1 - observed disagreement / expected disagreement; 1 is perfect, 0 chance; nan if fewer than two votes meet or
    none differ.

    Args: votes: [R, U], nan where a rater has not voted. scale: "interval" squares differences, "nominal" counts
    them."""
    values = votes.double().T
    counts = values.isfinite().sum(1)
    pairable = values[counts >= 2]
    known = pairable.isfinite()
    flat = pairable[known]
    if len(flat) < 2:
        return float("nan")

    def distance(a: Tensor, b: Tensor) -> Tensor:
        """delta^2 of Krippendorff's alpha, elementwise: squared difference, or 0 and 1 for nominal votes."""
        return (a - b).square() if scale == "interval" else (a != b).double()

    observed = 0.0
    for row, use in zip(pairable, known, strict=True):
        given = row[use]
        observed += float(distance(given[:, None], given[None]).sum()) / (len(given) - 1)
    levels, times = flat.unique(return_counts=True)
    times = times.double()
    expected = float((distance(levels[:, None], levels[None]) * times[:, None] * times[None]).sum()) / (len(flat) - 1)
    return 1 - observed / expected if expected > 0 else float("nan")
