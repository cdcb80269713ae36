"""Types of command-line arguments that are checked as configuration keys are: one line that says what was wanted.

    parser.add_argument("--steps", type=whole(1))        # --steps 0: must be a whole number, at least 1, got '0'

Left out on purpose: everything that has a configuration; a job with keys checks them in `loader.py`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

SEED_LIMIT = 2**31
"""Seeds stay below this, as run.seed does: what every generator of random numbers here takes."""


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Converter of a whole number in [low, high], for `type=` of an argument."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be a whole number, {_limits(low, high)}, got {text!r}")
        return value

    return convert


def number(low: float, high: float | None = None, above: bool = False) -> Callable[[str], float]:
    """Converter of a finite number in [low, high]; above: `low` itself is refused."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        outside = value < low or (above and value == low) or (high is not None and value > high)
        if not math.isfinite(value) or outside:
            wanted = f"above {low:g}" if above else _limits(low, high)
            raise argparse.ArgumentTypeError(f"must be a number, {wanted}, got {text!r}")
        return value

    return convert


def _limits(low: float, high: float | None) -> str:
    return f"at least {low:.10g}" if high is None else f"from {low:.10g} to {high:.10g}"


seed = whole(0, SEED_LIMIT - 1)
fraction = number(0, 1)
