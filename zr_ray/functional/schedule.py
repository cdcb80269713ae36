"""Learning rate as a function of the update: linear warm-up, then a cosine. Stateless, so a resumed run continues it
exactly."""

from __future__ import annotations

import math

from zr_ray.config.sections import LearnerSection


def learning_rate(update: int, updates: int, config: LearnerSection) -> float:
    """Rate of optimiser update `update` (0-based) of `updates` in all."""
    if update < config.warmup_steps:
        return config.lr * (update + 1) / config.warmup_steps
    done = (update - config.warmup_steps) / max(1, updates - config.warmup_steps)
    return config.lr * (config.min_lr_frac + (1 - config.min_lr_frac) * (1 + math.cos(math.pi * done)) / 2)
