"""Support, contact and shadows of the objects that were read: the geometry behind the physical plausibility of a
picture."""

from __future__ import annotations

from functools import cache, reduce
from itertools import product

import numpy as np

from zr_ray.world.scene import FLOAT_GAP, SIZE
from zr_ray.world.verifier.backdrop import Backdrop
from zr_ray.world.verifier.templates import Found, gaussian

CONTACT = 2.5
"""Objects whose boxes interpenetrate deeper than this, in pixels and in both directions, overlap (the world's do by
6)."""
DISAGREEMENT, ABSENCE = 1.5, 1.0
"""What it costs, in pixels of full darkness, to read shadows on different sides, or an object without a shadow (a small
one shows 25)."""
SHADOW_DEPTH = 8
"""Rows of ground, from its first, in which shadows are looked for."""


def relation(first: Found, second: Found) -> str:
    """Where the first object is, seen from the second: "left", "right", "on" or "under"."""
    dx, dy = second.x - first.x, (second.y + second.half) - (first.y + first.half)
    if abs(dx) >= abs(dy):
        return "left" if dx >= 0 else "right"
    return "on" if dy > 0 else "under"


def overlapping(first: Found, second: Found) -> bool:
    """Whether the boxes of two objects interpenetrate."""
    reach = first.half + second.half + 1
    return reach - abs(first.x - second.x) > CONTACT and reach - abs(first.y - second.y) > CONTACT


def _stacked_on(upper: Found, lower: Found) -> bool:
    """Whether `lower` is what `upper` would come down on: further down than aside, and in its column."""
    down = lower.y + lower.half - upper.y - upper.half
    return abs(upper.x - lower.x) <= max(upper.half, lower.half) and down > max(2, abs(upper.x - lower.x))


def supports(found: list[Found], ground: int) -> list[tuple[bool, int]]:
    """Per object (whether it stands over the ground rather than over another object, floating level as an index into
    FLOAT_GAP)."""
    answers = []
    for item in found:
        base = item.y + item.half
        tops = [other.y - other.half for other in found if other is not item and _stacked_on(item, other)]
        gap = min([ground, *tops]) - 1 - base
        level = sum(gap > (a + b) / 2 for a, b in zip(FLOAT_GAP, FLOAT_GAP[1:], strict=False))
        answers.append((not tops, level))
    return answers


def seen_shade(bright: np.ndarray, backdrop: Backdrop) -> np.ndarray:
    """[64, 64] float32: the ground's darkness where shadows can lie, taken from the picture as it is, 1 elsewhere.

    For use before objects are known; a 3 x 3 mean holds noise back, and no shadow is darker than 0.45."""
    shade = np.ones((SIZE, SIZE), np.float32)
    if backdrop.ground is not None:
        band = slice(backdrop.ground, min(SIZE, backdrop.ground + SHADOW_DEPTH))
        ratio = np.pad((bright[band] @ backdrop.soil) / float(backdrop.soil @ backdrop.soil), 1, mode="edge")
        tall = ratio[:-2] + ratio[1:-1] + ratio[2:]
        shade[band] = np.clip((tall[:, :-2] + tall[:, 1:-1] + tall[:, 2:]) / 9, 0.45, 1.0)
    return shade


@cache
def _ellipse(half: int) -> np.ndarray:
    y, x = np.mgrid[-3:4, -(half + 2) : half + 3]
    return (y / 3.3) ** 2 + (x / (half + 2.3)) ** 2 <= 1


def shadow_mask(item: Found, side: str, ground: int) -> np.ndarray:
    """[64, 64] float32: 1 where a shadow on that side of the object's foot lies."""
    mask = np.zeros((SIZE, SIZE + 80), np.float32)
    center = item.x + (item.half + 3) * (-1 if side == "left" else 1) + 40
    rows = min(7, SIZE - ground)
    mask[ground : ground + rows, center - item.half - 2 : center + item.half + 3] = _ellipse(item.half)[:rows]
    return mask[:, 40:-40]


def read_shadows(
    bright: np.ndarray, backdrop: Backdrop, found: list[Found], casting: list[bool], blur: float
) -> tuple[list[str], np.ndarray]:
    """Side on which every object casts its shadow, and what the shadows do to the picture.

    Every combination of left, right and none is drawn and the one nearest to the ground's darkness wins. Shadows
    outside the frame cannot be missed: a side that shows nothing is preferred to none.
    Returns: sides ("left", "right" or "" per object), [64, 64] float32 factors (1 outside shadows, 0.5 inside)."""
    sides, shade = [""] * len(found), np.ones((SIZE, SIZE), np.float32)
    who = [i for i, casts in enumerate(casting) if casts][:4]
    if backdrop.ground is None or not who:
        return sides, shade
    band = slice(backdrop.ground, min(SIZE, backdrop.ground + SHADOW_DEPTH))
    dark = np.clip(1 - (bright[band] @ backdrop.soil) / float(backdrop.soil @ backdrop.soil), -0.5, 1.0)
    kernel = gaussian(SIZE, blur)
    masks = {(i, side): shadow_mask(found[i], side, backdrop.ground) for i in who for side in ("left", "right")}
    soft = {key: kernel[band] @ mask @ kernel.T if blur else mask[band] for key, mask in masks.items()}
    best = (np.inf, ())
    for choice in product(("left", "right", ""), repeat=len(who)):
        union = reduce(np.maximum, (soft[i, side] for i, side in zip(who, choice, strict=True) if side), np.float32(0))
        error = dark - 0.5 * union
        best = min(
            best,
            (float(np.vdot(error, error)) + DISAGREEMENT * (len(set(choice)) - 1) + ABSENCE * choice.count(""), choice),
        )
    shade -= 0.5 * reduce(
        np.maximum, (masks[i, side] for i, side in zip(who, best[1], strict=True) if side), np.float32(0)
    )
    for i, side in zip(who, best[1], strict=True):
        sides[i] = side
    return sides, shade
