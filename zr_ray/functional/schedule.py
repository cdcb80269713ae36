"""Learning rate as a function of the update: linear warm-up, then a cosine. Stateless, so a resumed run continues it
exactly."""

from __future__ import annotations

import math


def learning_rate(update: int, updates: int, peak: float, warmup_steps: int, min_frac: float) -> float:
    """Rate of one optimizer update.

    Args: update: 0-based index of the update. updates: in all. peak: reached after `warmup_steps` updates. min_frac:
        rate at the end, as a fraction of the peak."""
    if update < warmup_steps:
        return peak * (update + 1) / warmup_steps
    done = (update - warmup_steps) / max(1, updates - warmup_steps)
    return peak * (min_frac + (1 - min_frac) * (1 + math.cos(math.pi * done)) / 2)
