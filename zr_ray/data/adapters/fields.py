"""One field of a source record: taken with a check, and mapped onto the rubric.

Every `where` is "FILE: line N"; every error says what was wanted, what came, and what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from zr_ray.errors import DataError
from zr_ray.rubric import PAPER

ADVICE = "correct or remove the record, or skip broken records (skip_broken)"

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
"""A number as spreadsheets of half of the world write it. Scores have no thousands, so the comma is no separator."""


def text(row: Mapping, name: str, where: str) -> str:
    """A string, possibly blank.   Raises: DataError if it is absent or of another type."""
    value = _present(row, name, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: wanted a string in {name!r}, got {value!r}; {ADVICE}")
    return value


def number(row: Mapping, name: str, where: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high], also when it is written as a string (CSV), with a decimal point or comma.

    Raises: DataError."""
    value = _present(row, name, where)
    written = value.replace(",", ".") if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value) else value
    try:
        found = math.nan if isinstance(written, bool) else float(written)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or not low <= found <= high:
        scale = f"a number in [{low:g}, {high:g}]" if math.isfinite(low) else "a finite number"
        raise DataError(f"{where}: wanted {scale} in {name!r}, got {value!r}; {ADVICE}")
    return found


def numbers(
    row: Mapping, name: str, where: str, low: float, high: float, length: int | None = None
) -> tuple[float, ...]:
    """A list of numbers in [low, high], of `length` if given, possibly empty.   Raises: DataError."""
    value = _present(row, name, where)
    if not isinstance(value, list) or (length is not None and len(value) != length):
        wanted = "a list of numbers" if length is None else f"a list of {length} numbers"
        raise DataError(f"{where}: wanted {wanted} in {name!r}, got {value!r}; {ADVICE}")
    return tuple(number({name: entry}, name, where, low, high) for entry in value)


def names(row: Mapping, name: str, where: str) -> tuple[str, ...]:
    """A list of at least two non-empty strings: the images of a comparison.   Raises: DataError."""
    value = _present(row, name, where)
    if (
        not isinstance(value, list)
        or len(value) < 2
        or not all(isinstance(entry, str) and entry.strip() for entry in value)
    ):
        raise DataError(f"{where}: wanted a list of at least two image names in {name!r}, got {value!r}; {ADVICE}")
    return tuple(value)


def to_rubric(value: float, low: float, high: float) -> float:
    """The score on the paper's scale of a value on one from `low` (worst) to `high` (best): s = 1 + 4 (value - low) /
    (high - low)."""
    return PAPER.bins[0] + PAPER.score_range * (value - low) / (high - low)


def train_label(score: float) -> float:
    """The bin nearest to a score in [1, 5]; a score halfway between two bins goes up."""
    return min(max(math.floor(2 * score + 0.5) / 2, PAPER.bins[0]), PAPER.bins[-1])


def annotated(scores: Sequence[float], split: str) -> float | tuple[float, ...]:
    """What the record holds: train, the bin nearest to the mean; dev and test, every annotator's score, exactly."""
    if split == "train":
        return train_label(sum(scores) / len(scores))
    return tuple(scores) if len(scores) > 1 else scores[0]


def _present(row: Mapping, name: str, where: str) -> object:
    if row.get(name) is None:
        raise DataError(f"{where}: wanted a value in {name!r}, got none (fields: {', '.join(map(str, row))}); {ADVICE}")
    return row[name]
