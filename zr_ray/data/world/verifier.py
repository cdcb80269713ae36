"""The verifier: reads any 64 x 64 picture by classical image analysis, without learning, and scores it on the world's rubric.

    verifier_backdrop     sun, brightness, sky, ground line, noise      verifier_objects      what stands where, by template least squares
    verifier_physics      support, contact, shadows                     verifier_degradation  blur, blocks, clutter, ... against a redrawing

No learned reward can move it, so it is the control beside every reward curve. It knows the world and nothing else: on a picture that
is no scene it finds nothing and every score is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from zr_ray.data.world.scene import AESTHETICS, COLOURS, PHRASES, REALISM, SHAPES, SIZE, SIZES, Asked, Request, SceneObject
from zr_ray.data.world.truth import PENALTY
from zr_ray.data.world.verifier_backdrop import read_backdrop
from zr_ray.data.world.verifier_degradation import deblock, draw, fit_blur_and_blocks, levels, soften
from zr_ray.data.world.verifier_objects import BLURS, MARGIN, MIN_FIT, MIN_GAIN, Found, coverage, fit_object, propose
from zr_ray.data.world.verifier_physics import overlapping, read_shadows, relation, supports
from zr_ray.errors import DataError


@dataclass(frozen=True)
class SeenObject(SceneObject):
    """One object as it is read from pixels."""

    fit: float = 1.0
    """Share of the object's own energy that the picture supports; 1 is perfect."""


@dataclass(frozen=True)
class SceneReading:
    """What the verifier reads from a picture."""

    objects: tuple[SeenObject, ...]
    """Objects from left to right; empty when nothing recognisable is there."""
    relations: dict[tuple[int, int], str]
    """(i, j) -> where object i is, seen from object j, one of RELATIONS."""
    light: str
    """Corner of the sun, "left" or "right"; empty when no sun is seen."""
    ground: int | None
    """First row of the ground; None when there is no ground line."""
    overlap: bool
    """Whether two objects interpenetrate."""
    levels: dict[str, float]
    """LEVELS -> [0, 1], 0 when absent."""

    @property
    def floating(self) -> int:
        """Highest floating level, an index into FLOAT_GAP."""
        return max((item.floating for item in self.objects), default=0)

    @property
    def shadow_wrong(self) -> bool:
        """Whether a shadow falls towards the sun, or an object over the ground casts none, or there is no sun to cast it."""
        casting = [item.shadow for item in self.objects if item.shadow != "covered"]
        return not self.light or any(side in ("", self.light) for side in casting)
