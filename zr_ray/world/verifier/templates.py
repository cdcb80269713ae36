"""The objects of the world as templates: coverage of fill and outline, drawing, and the banks that `verifier_objects`
fits with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from zr_ray.world.render import OUTLINE, RGB, shape_mask
from zr_ray.world.scene import COLORS, HALF_WIDTH, SHAPES, SIZE, SIZES

KINDS = tuple((shape, size) for shape in SHAPES for size in SIZES)
PALETTE = np.array([RGB[name] for name in COLORS], np.float32)
"""[6, 3] fill colors in the order of COLORS."""
MARGIN = 12
"""Pixels of padding around the picture, so that windows of objects cut by the frame stay inside the array."""
CORE = (slice(MARGIN, MARGIN + SIZE),) * 2
"""The picture inside a padded array."""
WINDOW = 10
"""Pixels from a fitting window's center to its left and upper edge."""
BLURS = (0.0, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.2)
"""Gaussian standard deviations, pixels, that templates exist for. The world's blur ends at 1.8; shapes cannot be told
beyond."""


@dataclass(frozen=True)
class Found:
    """One object as it was fitted."""

    kind: int
    """Index into KINDS."""
    color: int
    """Index into COLORS."""
    x: int
    """Column of the center."""
    y: int
    """Row of the center."""
    fit: float
    """gain / energy: 1 for a perfect match, whatever the noise; 0 when it explains nothing."""
    gain: float
    """Squared gray levels explained."""

    @property
    def shape(self) -> str:
        return KINDS[self.kind][0]

    @property
    def size(self) -> str:
        return KINDS[self.kind][1]

    @property
    def half(self) -> int:
        return HALF_WIDTH[self.size]


@cache
def coverage(kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill and outline of a kind, each [2 half + 1, 2 half + 1] bool."""
    shape, size = KINDS[kind]
    mask = np.pad(shape_mask(shape, HALF_WIDTH[size]), 1)
    core = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    mask = mask[1:-1, 1:-1]
    return mask & core, mask & ~core


def paint(image: np.ndarray, kind: int, color: int, x: int, y: int) -> None:
    """Draw an object into a [64, 64, 3] float32 picture, in place, clipped by the frame."""
    half = HALF_WIDTH[KINDS[kind][1]]
    rows, columns = slice(max(0, y - half), min(SIZE, y + half + 1)), slice(max(0, x - half), min(SIZE, x + half + 1))
    cut = slice(rows.start - y + half, rows.stop - y + half), slice(columns.start - x + half, columns.stop - x + half)
    for mask, ink in zip(coverage(kind), (PALETTE[color], OUTLINE), strict=True):
        image[rows, columns][mask[cut]] = ink


@cache
def gaussian(length: int, sigma: float) -> np.ndarray:
    """[length, length] float32 matrix that blurs along an axis, weights renormalized at the ends; the identity for
    sigma 0."""
    if sigma <= 0:
        return np.eye(length, dtype=np.float32)
    at = np.arange(length)
    kernel = np.exp(-0.5 * np.square((at[:, None] - at) / sigma))
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


@cache
def bank(blur: int, reach: int, coarse: bool) -> np.ndarray:
    """Templates of BLURS[blur], [8 kinds * (2 reach + 1)^2 shifts, window cells * 5].

    A cell is one of 21 x 21 pixels, or, coarse, one of 11 x 11 means of 2 x 2 pixels. Per cell stand fill, outline,
    fill^2, fill outline and outline^2, each with the factor that it has in the gain: 2, 2, -1, -2, -1."""
    side, shifts = 2 * WINDOW + (2 if coarse else 1), range(-reach, reach + 1)
    kernel = gaussian(side, BLURS[blur])
    templates = []
    for kind, dy, dx in product(range(len(KINDS)), shifts, shifts):
        half = HALF_WIDTH[KINDS[kind][1]]
        parts = []
        for mask in coverage(kind):
            canvas = np.zeros((side + 8, side + 8), np.float32)
            top, left = WINDOW + dy - half + 4, WINDOW + dx - half + 4
            canvas[top : top + 2 * half + 1, left : left + 2 * half + 1] = mask
            soft = kernel @ canvas[4:-4, 4:-4] @ kernel.T
            parts.append((soft.reshape(side // 2, 2, side // 2, 2).mean((1, 3)) if coarse else soft).ravel())
        fill, outline = parts
        templates.append(np.stack((2 * fill, 2 * outline, -(fill**2), -2 * fill * outline, -(outline**2)), 1).ravel())
    return np.array(templates)


def covered(item: Found) -> np.ndarray:
    """[64, 64] bool: the pixels an object covers."""
    return padded_cover(item)[CORE]


def padded_cover(item: Found) -> np.ndarray:
    """[88, 88] bool: as `covered`, padded by MARGIN."""
    mask = np.zeros((SIZE + 2 * MARGIN, SIZE + 2 * MARGIN), bool)
    top, left, side = item.y + MARGIN - item.half, item.x + MARGIN - item.half, 2 * item.half + 1
    fill, outline = coverage(item.kind)
    mask[top : top + side, left : left + side] = fill | outline
    return mask


def inside(x: int, y: int) -> tuple[int, int]:
    """The nearest place inside the frame."""
    return min(SIZE - 1, max(0, x)), min(SIZE - 1, max(0, y))


def pool(image: np.ndarray) -> np.ndarray:
    """[2 H, 2 W, ..] -> [H, W, ..] means of 2 x 2 pixels."""
    tall = image[0::2] + image[1::2]
    return (tall[:, 0::2] + tall[:, 1::2]) * np.float32(0.25)
