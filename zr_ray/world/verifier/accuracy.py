"""How often the verifier reads rendered scenes right, per attribute and strength of degradation: the origin of every
figure about it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from zr_ray.rubric import DIMENSIONS
from zr_ray.world.render import render
from zr_ray.world.sampling import Candidate, sample_candidates
from zr_ray.world.scene import MIN_LEVEL, Scene
from zr_ray.world.truth import true_scores
from zr_ray.world.verifier.reading import SceneReading, read_scene
from zr_ray.world.verifier.scores import alignment_score, plausibility_score, quality_scores

STRENGTHS = ("clean", "mild", "strong")
"""No degradation; each at half the level drawn (at least MIN_LEVEL); as drawn by the world, up to 1. Cropping, which is
geometry, is absent from clean scenes and as drawn in the others."""
OBJECT_ATTRIBUTES = ("color", "shape", "size", "place")
SCENE_ATTRIBUTES = ("count", "objects", "relation", "floating", "shadow", "overlap", "light", "exact")
NEAR = 6
"""Pixels within which a read object answers for a true one."""


def degraded(scene: Scene, strength: str) -> Scene | None:
    """The scene at another strength of degradation; None where it cannot be had (a cropped scene made clean)."""
    if strength == "strong":
        return scene
    if strength == "clean":
        return None if scene.levels["cropping"] else replace(scene, levels=dict.fromkeys(scene.levels, 0.0))
    return replace(
        scene, levels={n: v if n == "cropping" or not v else max(MIN_LEVEL, v / 2) for n, v in scene.levels.items()}
    )


def reading_verdicts(scene: Scene, reading: SceneReading) -> dict[str, list[bool]]:
    """Attribute -> whether it was read right, once per true object (OBJECT_ATTRIBUTES) or once per scene
    (SCENE_ATTRIBUTES).

    "relation" only where the scene has one. "objects" is all of count, color, shape and size; "exact" adds relation,
    floating, shadow and overlap."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    answers: dict[int, int] = {}
    for index, item in enumerate(scene.objects):
        distance = {
            i: max(abs(seen.x - item.x), abs(seen.y - item.y))
            for i, seen in enumerate(reading.objects)
            if i not in answers.values()
        }
        nearest = min(distance, key=distance.get, default=None)
        seen = reading.objects[nearest] if nearest is not None and distance[nearest] <= NEAR else None
        if seen is not None:
            answers[index] = nearest
        for name in ("color", "shape", "size"):
            verdicts[name].append(seen is not None and getattr(seen, name) == getattr(item, name))
        verdicts["place"].append(seen is not None and distance[nearest] <= 1)
    verdicts["count"].append(len(reading.objects) == len(scene.objects))
    verdicts["objects"].append(verdicts["count"][0] and all(all(verdicts[name]) for name in ("color", "shape", "size")))
    related = True
    if scene.relation:
        first, second = (
            next(i for i, o in enumerate(scene.objects) if o is item) for item in (scene.first, scene.second)
        )
        related = (
            first in answers
            and second in answers
            and reading.relations[answers[first], answers[second]] == scene.relation
        )
        verdicts["relation"].append(related)
    for name in ("floating", "overlap", "light"):
        verdicts[name].append(getattr(reading, name) == getattr(scene, name))
    verdicts["shadow"].append(reading.shadow_wrong == scene.shadow_wrong)
    verdicts["exact"].append(
        related and all(verdicts[name][0] for name in ("objects", "floating", "shadow", "overlap"))
    )
    return verdicts


def _scenes(strength: str, images: int, seed: int) -> Iterator[tuple[Candidate, Scene]]:
    found = ((c, degraded(c.scene, strength)) for c in sample_candidates(seed))
    return islice(((c, scene) for c, scene in found if scene is not None), images)


def accuracy_table(images: int, seed: int, strengths: tuple[str, ...] = STRENGTHS) -> dict[str, dict[str, float]]:
    """Strength -> figures over `images` rendered scenes each.

    Returns: per attribute the share read right; "error/<dimension>" the mean distance between verified and true score,
    rubric points; "images_per_s" readings per second of processor time, one thread."""
    table = {}
    for strength in strengths:
        verdicts, errors, spent = defaultdict(list), defaultdict(list), 0.0
        for candidate, scene in _scenes(strength, images, seed):
            image = render(scene)
            start = time.process_time()
            reading = read_scene(image)
            spent += time.process_time() - start
            for name, values in reading_verdicts(scene, reading).items():
                verdicts[name] += values
            truth = true_scores(candidate.request, scene)
            got = {"alignment": alignment_score(reading, candidate.prompt), "plausibility": plausibility_score(reading)}
            for dimension, score in (got | quality_scores(reading)).items():
                errors[dimension].append(abs(score - truth[dimension]))
        row = {name: float(np.mean(verdicts[name])) for name in OBJECT_ATTRIBUTES + SCENE_ATTRIBUTES}
        row |= {f"error/{dimension}": float(np.mean(errors[dimension])) for dimension in DIMENSIONS}
        table[strength] = row | {"images_per_s": images / spent}
    return table
