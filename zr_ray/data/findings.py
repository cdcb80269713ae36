"""What a data set holds that a run can live with but people should know: counted by kind, with the first place.

Each function adds its kind of finding and changes nothing else. Every finding becomes one line of the job log, of the
report and of a student's card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from zr_ray.data.pairs import aggregate_scores, group_items, preference_pairs
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import Rubric

ENOUGH = 20
"""Scores below which their range says nothing about the scale they were given on."""


class Findings:
    """Counts by kind, in the order in which the kinds came up."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, first: str = "", count: int = 1) -> None:
        """One more of a kind. first: where, kept of the first of its kind."""
        if count:
            self._counts[kind] += count
            self._first.setdefault(kind, first)

    def lines(self) -> tuple[str, ...]:
        """`12 x images: ... (first: g3-1)`, one a kind; a kind of its own sentence (no count) as it is."""
        return tuple(
            f"{count} x {kind} (first: {self._first[kind]})" if self._first[kind] else kind
            for kind, count in self._counts.items()
        )


def leak_findings(
    train: Sequence[AnnotatedImage], held_out: Sequence[AnnotatedImage], prints: Mapping[str, str], findings: Findings
) -> None:
    """Images, by their pixels and not their names, and prompts that are in both splits. prints: id -> fingerprint."""
    seen: dict[str, str] = {}
    for item in train:
        seen.setdefault(prints[item.id], item.id)
    prompts = {item.prompt for item in train}
    shared = {item.prompt for item in held_out} & prompts
    for item in held_out:
        if prints[item.id] in seen:
            findings.add(
                "held-out image that is also a training image: held-out results will be optimistic",
                f"{item.id} is {seen[prints[item.id]]}",
            )
    if shared:
        findings.add(
            "held-out prompt that is also a training prompt: held-out results may be optimistic",
            repr(min(shared)[:60]),
            len(shared),
        )


def twin_findings(items: Sequence[AnnotatedImage], prints: Mapping[str, str], findings: Findings) -> None:
    """Pairs of one group with equal pixels and different scores: the same picture as winner and loser."""
    for members in group_items(items).values():
        for a, b in combinations(members, 2):
            if prints[a.id] == prints[b.id] and preference_pairs([a, b]):
                findings.add(
                    "pair of the same picture with different scores: nothing to learn from it", f"{a.id}, {b.id}"
                )


def scale_findings(
    train: Sequence[AnnotatedImage], held_out: Sequence[AnnotatedImage], rubric: Rubric, findings: Findings
) -> None:
    """Scores that look as if they had been given on another scale."""
    low, high = rubric.bins[0], rubric.bins[-1]
    half, step = (low + high) / 2, rubric.margin
    for dimension in rubric.dimensions:
        given = [score for item in train for score in _votes(item, dimension)]
        if len(given) >= ENOUGH and max(given) <= half:
            findings.add(
                f"no training score of {dimension} is above {max(given):g}, half of the scale {low:g}..{high:g}: were"
                " they given on a longer scale?"
            )
        votes = [vote for item in held_out for vote in _votes(item, dimension)]
        if len(votes) >= ENOUGH and low + step <= min(votes) and max(votes) <= high - step:
            findings.add(
                f"held-out scores of {dimension} lie in {min(votes):g}..{max(votes):g} and use neither end of the scale"
                f" {low:g}..{high:g}: were they given on another one?"
            )


def held_out_findings(held_out: Sequence[AnnotatedImage], split: str, findings: Findings) -> None:
    """A split that HPA is undefined on."""
    if not any(item.scores for item in held_out):
        findings.add(f"split {split!r} has no scores: a student can be compared with its teacher only")
        return
    if not any(preference_pairs(members) for members in group_items(held_out).values()):
        findings.add(
            f"split {split!r} has no same-prompt pair with different scores: HPA is undefined and shown as `no pairs`;"
            " PLCC and SRCC are still there"
        )


def _votes(item: AnnotatedImage, dimension: str) -> tuple[float, ...]:
    given = item.scores.get(dimension, ())
    return given if isinstance(given, tuple) else (aggregate_scores(given),)
