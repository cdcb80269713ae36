"""Scores on the world's rubric from what the verifier reads: alignment, realism, aesthetics, physical plausibility. No
learning.

A measured fault costs what the same fault costs in the truth of a rendered scene (`truth.PENALTY`).
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from zr_ray.errors import DataError
from zr_ray.rubric import DIMENSIONS
from zr_ray.world.scene import AESTHETICS, COLORS, PHRASES, REALISM, SHAPES, SIZES, Asked, Request
from zr_ray.world.truth import PENALTY
from zr_ray.world.verifier.reading import SceneReading, read_scene


def parse_prompt(prompt: str) -> Request:
    """The request behind a prompt of the world, e.g. "small red circle left of big blue square". Raises: DataError for
    other text."""
    words = prompt.split()

    def asked(part: list[str]) -> Asked | None:
        fits = len(part) == 3 and part[0] in SIZES and part[1] in COLORS and part[2] in SHAPES
        return Asked(*part) if fits else None

    first, second = asked(words[:3]), asked(words[-3:])
    middle = " ".join(words[3:-3])
    if len(words) == 3 and first is not None:
        return Request(first)
    for name, phrase in PHRASES.items():
        if middle == phrase and first is not None and second is not None:
            return Request(first, second, name)
    raise DataError(
        f"a prompt of the rubric world is 'SIZE COLOR SHAPE' or two of them joined by {', '.join(PHRASES.values())};"
        f" got {prompt!r}"
    )


def pair_objects(reading: SceneReading, request: Request) -> tuple[float, tuple[int | None, ...]]:
    """The cheapest way to pair what was asked for with what is seen.

    Returns: (penalty, infinite when nothing pairs with anything; per asked-for object the index of the seen one, None
    when missing)."""
    asked = [request.first] + ([request.second] if request.second is not None else [])
    best: tuple[float, tuple[int | None, ...]] = (float("inf"), (None,) * len(asked))
    slots = [*range(len(reading.objects))] + [None] * (len(asked))
    for choice in set(permutations(slots, len(asked))):
        used = [i for i in choice if i is not None]
        if not used:
            continue
        penalty = PENALTY["extra"] * (len(reading.objects) - len(used)) + PENALTY["missing"] * (len(asked) - len(used))
        for want, index in zip(asked, choice, strict=True):
            if index is not None:
                seen = reading.objects[index]
                penalty += sum(
                    PENALTY[name] for name in ("size", "color", "shape") if getattr(want, name) != getattr(seen, name)
                )
        if len(used) == 2 and reading.relations[choice[0], choice[1]] != request.relation:
            penalty += PENALTY["relation"]
        if penalty < best[0]:
            best = (penalty, choice)
    return best


def _alignment_penalty(reading: SceneReading, request: Request) -> float:
    return pair_objects(reading, request)[0]


def objects_match(reading: SceneReading, prompt: str) -> bool:
    """Whether everything asked for is there exactly, relation included, and nothing else. Raises: DataError for a
    foreign prompt."""
    return _alignment_penalty(reading, parse_prompt(prompt)) == 0


def alignment_score(reading: SceneReading, prompt: str) -> float:
    """Text-image alignment in [1, 5], rubric points: 5 minus the penalties of `truth.PENALTY`; 1 when nothing is seen.

    Objects are paired with what was asked for so that the penalty is smallest. Raises: DataError for a foreign
    prompt."""
    return _score(_alignment_penalty(reading, parse_prompt(prompt)))


def plausibility_score(reading: SceneReading) -> float:
    """Physical plausibility in [1, 5], rubric points; 1 when no object or no ground is seen.

    Departs from the rendered truth in one point: an object that casts no shadow counts like one whose shadow is on the
    wrong side."""
    if not reading.objects or reading.ground is None:
        return 1.0
    return _score(
        PENALTY["floating"][reading.floating]
        + PENALTY["shadow"] * reading.shadow_wrong
        + PENALTY["overlap"] * reading.overlap
    )


def quality_scores(reading: SceneReading) -> dict[str, float]:
    """Realism and aesthetics in [1, 5], rubric points: 5 minus the penalties of the measured degradations; 1 when no
    object is seen."""
    return {
        dimension: _score(sum(PENALTY[name] * reading.levels[name] for name in names)) if reading.objects else 1.0
        for dimension, names in (("realism", REALISM), ("aesthetics", AESTHETICS))
    }


def verify(image: np.ndarray, prompt: str) -> dict[str, float]:
    """Dimension -> score in [1, 5], rubric points, of a [64, 64, 3] uint8 picture for a prompt of the world.

    Every score is 1 when no object is seen: there is nothing to judge, and emptiness must not pay.
    Raises: ValueError for a picture of another shape or type, DataError for a foreign prompt."""
    reading = read_scene(image)
    scores = {
        "alignment": alignment_score(reading, prompt),
        "plausibility": plausibility_score(reading),
    } | quality_scores(reading)
    return {dimension: scores[dimension] for dimension in DIMENSIONS}


def _score(penalty: float) -> float:
    return float(min(5.0, max(1.0, 5.0 - penalty)))
