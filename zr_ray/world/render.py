"""Scene -> uint8 [64, 64, 3], numpy only, a pure function of the scene.

Order: background (with palette clash), sun, litter, shadows, objects, overlap, dimming, blur, blocks, noise.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from zr_ray.world.scene import SIZE, Scene, SceneObject

RGB = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 220),
    "yellow": (245, 215, 40),
    "purple": (150, 50, 190),
    "white": (248, 248, 248),
}
OUTLINE = np.array((35, 35, 40), np.float32)
SKY, GROUND, SUN = (176, 205, 232), (168, 152, 122), (255, 250, 205)
CLASHES = (((255, 40, 200), (120, 255, 20)), ((255, 120, 0), (0, 230, 230)), ((80, 255, 60), (255, 30, 140)))
"""Sky and ground of a fully clashing palette."""
LITTER = np.array(((70, 60, 50), (95, 85, 80), (60, 70, 60)), np.float32)


def render(scene: Scene) -> np.ndarray:
    """Draw a scene. Returns: [64, 64, 3] uint8 RGB."""
    rng = np.random.default_rng(scene.seed)
    level = scene.levels
    image = _background(scene, rng)
    _paint(image, _disc(5), 8 if scene.light == "left" else SIZE - 9, 8, np.array(SUN, np.float32))
    if level["clutter"] > 0:
        _litter(image, round(4 + 20 * level["clutter"]), rng)
    for item in scene.objects:
        if item.shadow:
            _shade(image, item, scene.ground)
    for item in scene.objects:
        _draw(image, item)
    if scene.overlap:
        _interpenetrate(image, scene.first, scene.second)
    if level["dimming"] > 0:
        image *= 0.92 - 0.57 * level["dimming"]
    if level["blur"] > 0:
        image = _blur(image, 0.5 + 1.3 * level["blur"])
    if level["blocks"] > 0:
        image = _blocks(image, 0.25 + 0.55 * level["blocks"])
    if level["noise"] > 0:
        image += rng.standard_normal(image.shape, np.float32) * np.float32(5 + 25 * level["noise"])
    image += np.float32(0.5)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


_GRADIENT = np.linspace(-6, 24, SIZE, dtype=np.float32)[:, None]
"""[64, 1] the sky grows lighter towards the ground."""


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    sky, ground = np.array(SKY, np.float32), np.array(GROUND, np.float32)  # [3]
    clash = scene.levels["clash"]
    if clash > 0:
        other = np.array(CLASHES[rng.integers(len(CLASHES))], np.float32)
        weight = np.float32(0.1 + 0.75 * clash)
        sky, ground = sky + weight * (other[0] - sky), ground + weight * (other[1] - ground)
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[: scene.ground] = (sky + _GRADIENT[: scene.ground])[:, None]
    image[scene.ground :] = ground
    return image


def _litter(image: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """`count` sticks of 1-2 x 2-3 pixels, dark, anywhere behind the objects."""
    rows, columns = rng.integers(0, SIZE - 3, (2, count))
    kinds, flips = rng.integers(0, len(LITTER), count), rng.integers(0, 2, count)
    for row, column, kind, flip in zip(rows.tolist(), columns.tolist(), kinds.tolist(), flips.tolist(), strict=True):
        high, wide = (3, 1) if flip else (2, 3)
        image[row : row + high, column : column + wide] = LITTER[kind]


@cache
def _disc(radius: int) -> np.ndarray:
    axis = np.arange(-radius, radius + 1)
    return (axis[:, None] ** 2 + axis**2) <= (radius + 0.3) ** 2


@cache
def shape_mask(shape: str, half: int) -> np.ndarray:
    """[2 half + 1, 2 half + 1] bool: the pixels a shape covers."""
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    if shape == "circle":
        return _disc(half)
    if shape == "square":
        return np.ones(x.shape, bool)
    if shape == "triangle":
        return np.abs(x) <= (y + half) / 2 + 0.5
    arm = max(2, round(0.36 * half))
    return (np.abs(x) <= arm) | (np.abs(y) <= arm)


@cache
def _outline(shape: str, half: int) -> np.ndarray:
    """[2 half + 1, 2 half + 1] bool: covered pixels with an uncovered 4-neighbor."""
    mask = np.pad(shape_mask(shape, half), 1)
    inner = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return mask[1:-1, 1:-1] & ~inner


def _window(mask: np.ndarray, x: int, y: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Image slices under a mask centered at (x, y), and the part of the mask inside the frame."""
    half_y, half_x = mask.shape[0] // 2, mask.shape[1] // 2
    top, left = max(0, y - half_y), max(0, x - half_x)
    bottom, right = min(SIZE, y + half_y + 1), min(SIZE, x + half_x + 1)
    inside = mask[top - y + half_y : max(top, bottom) - y + half_y, left - x + half_x : max(left, right) - x + half_x]
    return (slice(top, max(top, bottom)), slice(left, max(left, right))), inside


def _paint(image: np.ndarray, mask: np.ndarray, x: int, y: int, color: np.ndarray) -> None:
    window, inside = _window(mask, x, y)
    image[window][inside] = color


def _draw(image: np.ndarray, item: SceneObject) -> None:
    _paint(image, shape_mask(item.shape, item.half), item.x, item.y, np.array(RGB[item.color], np.float32))
    _paint(image, _outline(item.shape, item.half), item.x, item.y, OUTLINE)


@cache
def _shadow_mask(half: int) -> np.ndarray:
    y, x = np.mgrid[-3:4, -(half + 2) : half + 3]
    return (y / 3.3) ** 2 + (x / (half + 2.3)) ** 2 <= 1


def _shade(image: np.ndarray, item: SceneObject, ground: int) -> None:
    """Darken an ellipse on the ground beside the object's foot, on its shadow side."""
    sign = -1 if item.shadow == "left" else 1
    window, inside = _window(_shadow_mask(item.half), item.x + sign * (item.half + 3), ground + 3)
    image[window][inside] *= np.float32(0.5)


def _interpenetrate(image: np.ndarray, first: SceneObject, second: SceneObject) -> None:
    """Where both objects are, stripes of both colors: neither is in front."""
    common = np.ones((SIZE, SIZE), bool)
    for item in (first, second):
        covered = np.zeros((SIZE, SIZE), bool)
        window, inside = _window(shape_mask(item.shape, item.half), item.x, item.y)
        covered[window] = inside
        common &= covered
    rows = np.nonzero(common)
    colors = np.array((RGB[first.color], RGB[second.color]), np.float32)
    image[rows] = colors[(rows[0] + rows[1]) // 2 % 2]


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Separable Gaussian, sigma in pixels, edge pixels repeated. Shifted sums, not matrix products: those would wake
    BLAS threads."""
    radius = int(2.5 * sigma) + 1
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2).astype(np.float32)
    weights /= weights[0] + 2 * weights[1:].sum()
    flat = image.reshape(SIZE, -1)
    for _ in range(2):  # rows, then, after the transposition, columns
        padded = np.concatenate((np.repeat(flat[:1], radius, 0), flat, np.repeat(flat[-1:], radius, 0)))
        blurred = weights[0] * flat
        for tap in range(1, radius + 1):
            both = padded[radius - tap : radius - tap + SIZE] + padded[radius + tap : radius + tap + SIZE]
            both *= weights[tap]
            blurred += both
        flat = np.ascontiguousarray(blurred.reshape(SIZE, SIZE, 3).transpose(1, 0, 2)).reshape(SIZE, -1)
    return flat.reshape(SIZE, SIZE, 3)


def _blocks(image: np.ndarray, weight: float) -> np.ndarray:
    """Blend towards the means of 4 x 4 blocks."""
    tall = image.reshape(SIZE // 4, 4, SIZE, 3)
    strips = (tall[:, 0] + tall[:, 1] + tall[:, 2] + tall[:, 3]).reshape(SIZE // 4, SIZE // 4, 4, 3)
    means = (strips[:, :, 0] + strips[:, :, 1] + strips[:, :, 2] + strips[:, :, 3]) * np.float32(
        weight / 16
    )  # [16, 16, 3]
    image *= np.float32(1 - weight)
    image.reshape(SIZE // 4, 4, SIZE, 3)[:] += np.repeat(means, 4, axis=1)[:, None]
    return image
