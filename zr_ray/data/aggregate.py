"""From several annotators' scores to the one score metrics are computed against (method section 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def aggregate_scores(scores: float | Sequence[float]) -> float:
    """Mean after dropping the highest and the lowest score, s-hat of a test item.

    A single number is returned as it is; one or two scores give their plain mean.
    Raises: ValueError if there is no score, or one is not finite.
    """
    values = [float(scores)] if isinstance(scores, (int, float)) else sorted(float(score) for score in scores)
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"aggregate_scores needs at least one finite score, got {scores!r}")
    if len(values) >= 3:
        values = values[1:-1]
    return sum(values) / len(values)
