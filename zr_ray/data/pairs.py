"""From annotators' scores to same-prompt preference pairs, and the order in which training visits them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from zr_ray.errors import ConfigError, DataError
from zr_ray.records import AnnotatedImage, PreferencePair
from zr_ray.rubric import PAPER


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


def group_items(items: Iterable[AnnotatedImage]) -> dict[str, list[AnnotatedImage]]:
    """Items by group, groups and items in the order in which they come."""
    groups: dict[str, list[AnnotatedImage]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return groups


def preference_pairs(items: Iterable[AnnotatedImage], dimensions: Sequence[str] | None = None) -> list[PreferencePair]:
    """Every (winner, loser, dimension) inside a group whose aggregated scores differ; ties give no pair (method section
    2).

    Items without a score in a dimension take no part in it. Order: group, dimension, then as the items come.
    Args: dimensions: those wanted; None: all that have scores, the paper's first.
    """
    pairs = []
    for members in group_items(items).values():
        for dimension in _scored_dimensions(members) if dimensions is None else dimensions:
            scored = [(item, aggregate_scores(item.scores[dimension])) for item in members if dimension in item.scores]
            for (a, score_a), (b, score_b) in combinations(scored, 2):
                if score_a > score_b:
                    pairs.append(PreferencePair(a, b, dimension, score_a, score_b))
                elif score_b > score_a:
                    pairs.append(PreferencePair(b, a, dimension, score_b, score_a))
    return pairs


def _scored_dimensions(items: Iterable[AnnotatedImage]) -> list[str]:
    """Dimensions with a score, in an order that the items' order does not change."""
    found = {dimension for item in items for dimension in item.scores}
    return [d for d in PAPER.dimensions if d in found] + sorted(found - set(PAPER.dimensions))


@lru_cache(maxsize=32)
def _permutation(seed: int, stream: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, stream, epoch, size)).permutation(size)


class PairSchedule:
    """Which pairs a step trains on: a pure function of (seed, step), so a resumed run needs no saved position.

    Slot k of the endless sequence belongs to dimension k mod D' (D' dimensions that have pairs), so the counts per
    dimension of any step differ by at most one. Each dimension runs through its own pairs in a fresh permutation per
    epoch of its own, without a break at the epoch boundary.
    """

    def __init__(self, pairs: Sequence[PreferencePair], pairs_per_step: int, seed: int) -> None:
        """Raises: DataError if there are no pairs; ConfigError if pairs_per_step is below 1 or the seed negative."""
        if not pairs:
            raise DataError(
                "wanted at least one same-prompt pair with different scores, got none; each group needs two items or"
                " more with different scores in some dimension"
            )
        if pairs_per_step < 1 or seed < 0:
            raise ConfigError(
                f"wanted pairs_per_step at least 1 and a seed at least 0, got {pairs_per_step} and {seed}; correct them"
            )
        by_dimension: dict[str, list[PreferencePair]] = {}
        for pair in pairs:
            by_dimension.setdefault(pair.dimension, []).append(pair)
        self.streams = [by_dimension[d] for d in sorted(by_dimension)]
        """D' lists, the pairs of each dimension in name order."""
        self.pairs_per_step = pairs_per_step
        self.seed = seed

    def batch(self, step: int) -> list[PreferencePair]:
        """The pairs of one step, step >= 0. Returns: pairs_per_step pairs, dimensions in turn."""
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        batch = []
        for slot in range(step * self.pairs_per_step, (step + 1) * self.pairs_per_step):
            position, stream = divmod(slot, len(self.streams))
            pairs = self.streams[stream]
            epoch, index = divmod(position, len(pairs))
            batch.append(pairs[_permutation(self.seed, stream, epoch, len(pairs))[index]])
        return batch
