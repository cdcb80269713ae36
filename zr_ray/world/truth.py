"""The true score of a scene per dimension: 5 minus penalties, clipped to [1, 5]. SIMULATED ground truth, known exactly.

Alignment and plausibility penalties are discrete, realism and aesthetics penalties are proportional to degradation
levels. The discrete values are those of the first measured prototype of this world; the level weights were chosen so
that all four dimensions have a similar spread.
"""

from __future__ import annotations

from zr_ray.world.scene import AESTHETICS, REALISM, Request, Scene

PENALTY = {
    "size": 0.75,
    "color": 1.25,
    "shape": 1.25,
    "relation": 1.5,
    "missing": 2.0,
    "extra": 1.0,
    "floating": (0.0, 1.0, 1.75),
    "shadow": 1.25,
    "overlap": 1.5,
    "noise": 1.75,
    "blur": 1.75,
    "blocks": 1.5,
    "clash": 1.5,
    "clutter": 1.4,
    "dimming": 1.5,
    "cropping": 1.4,
}
"""Rubric points taken off; floating per level, degradations at level 1."""


def alignment_faults(request: Request, scene: Scene) -> list[str]:
    """Every request that is not met, as keys of PENALTY; a missing object excuses its attributes and the relation."""
    faults = []
    for asked, seen in ((request.first, scene.first), (request.second, scene.second)):
        if asked is None:
            continue
        if seen is None:
            faults.append("missing")
            continue
        faults += [name for name in ("size", "color", "shape") if getattr(asked, name) != getattr(seen, name)]
    if scene.relation and scene.relation != request.relation:
        faults.append("relation")
    return faults + (["extra"] if scene.extra is not None else [])


def true_scores(request: Request, scene: Scene) -> dict[str, float]:
    """Dimension -> true score in [1, 5], rubric points."""
    penalties = {
        "alignment": sum(PENALTY[fault] for fault in alignment_faults(request, scene)),
        "realism": sum(PENALTY[name] * scene.levels[name] for name in REALISM),
        "aesthetics": sum(PENALTY[name] * scene.levels[name] for name in AESTHETICS),
        "plausibility": (
            PENALTY["floating"][scene.floating]
            + PENALTY["shadow"] * scene.shadow_wrong
            + PENALTY["overlap"] * scene.overlap
        ),
    }
    return {dimension: min(5.0, max(1.0, 5.0 - penalty)) for dimension, penalty in penalties.items()}
