"""How degraded a picture is, measured against the scene that was read from it: blur, blocks, noise, dimming, clash, clutter, cropping.

The scene is drawn again without degradation and compared: what blur and blockiness turn that drawing into the picture, and how much
is left over. Nothing here knows the renderer's levels; they are inverted from the measured quantities by the renderer's own formulas.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from zr_ray.data.world.render import CLASHES, GROUND, LITTER, SKY, SUN
from zr_ray.data.world.scene import LEVELS, SIZE
from zr_ray.data.world.verifier_backdrop import SUN_SPOTS, Backdrop
from zr_ray.data.world.verifier_objects import BLURS, Found, gaussian, paint

BLOCK = 4
"""Side of a compression block, pixels."""
STICK = 4.5
"""Mean area of a piece of litter, pixels."""


def draw(backdrop: Backdrop, shade: np.ndarray | None, found: list[Found]) -> np.ndarray:
    """[64, 64, 3] float32: the scene at full brightness without degradation. shade: [64, 64] factor of the ground, 1 outside shadows."""
    picture = np.repeat(backdrop.rows()[:, None], SIZE, axis=1)
    if backdrop.light:
        row, column = SUN_SPOTS[backdrop.light]
        picture[row - 5 : row + 6, column - 5 : column + 6][_disc()] = SUN
    if shade is not None:
        picture *= shade[:, :, None]
    for item in found:
        paint(picture, item.kind, item.colour, item.x, item.y)
    return picture


@lru_cache(maxsize=None)
def _disc() -> np.ndarray:
    axis = np.arange(-5, 6)
    return axis[:, None] ** 2 + axis**2 <= 5.3**2


def soften(picture: np.ndarray, blur: float) -> np.ndarray:
    """Gaussian blur with standard deviation `blur` pixels."""
    return _kernels(blur) @ (_kernels(blur) @ picture.reshape(SIZE, -1)).reshape(SIZE, SIZE, 3)


@lru_cache(maxsize=None)
def _kernels(blur: float) -> np.ndarray:
    return gaussian(SIZE, blur)


def block_means(picture: np.ndarray) -> np.ndarray:
    """The picture with every 4 x 4 block replaced by its mean."""
    n = SIZE // BLOCK
    means = picture.reshape(n, BLOCK, n, BLOCK, 3).mean((1, 3), keepdims=True)
    return np.broadcast_to(means, (n, BLOCK, n, BLOCK, 3)).reshape(SIZE, SIZE, 3)


def fit_blur_and_blocks(bright: np.ndarray, drawn: np.ndarray) -> tuple[int, float]:
    """(index into BLURS, block weight in [0, 0.85]) that best turn the drawing into the picture, by least squares over both."""
    best = (np.inf, 0, 0.0)
    for index, blur in enumerate(BLURS):
        model = soften(drawn, blur)
        detail = model - block_means(model)
        error = bright - model
        weight = float(np.clip(-np.vdot(error, detail) / max(1.0, np.vdot(detail, detail)), 0.0, 0.85))
        cost = float(np.square(error + weight * detail).sum())
        best = min(best, (cost, index, weight))
    return best[1], best[2]


def deblock(bright: np.ndarray, weight: float, noise: float) -> np.ndarray:
    """Undo a blend towards block means, held back where noise would be blown up (a Wiener gain against detail of 50 grey levels)."""
    if weight <= 0.05:
        return bright
    means = block_means(bright)
    keep = 1 - weight
    return means + (bright - means) * np.float32(keep / (keep**2 + (noise / 50.0) ** 2))


def levels(bright: np.ndarray, drawn: np.ndarray, backdrop: Backdrop, blur: float, weight: float, found: list[Found]) -> dict[str, float]:
    """LEVELS -> [0, 1], by inverting the renderer's formulas; below 0.1 counts as absent.

    Args: bright: [64, 64, 3] the picture at full brightness. drawn: the scene read from it. blur: pixels. weight: block weight."""
    measured = {
        "noise": (backdrop.noise - 5) / 25,
        "blur": (blur - 0.5) / 1.3,
        "blocks": (weight - 0.25) / 0.55,
        "clash": _clash(backdrop),
        "clutter": _clutter(bright, drawn, backdrop, found),
        "dimming": (0.92 - backdrop.gain) / 0.57,
        "cropping": _cropping(found),
    }
    return {name: float(min(1.0, measured[name])) if measured[name] >= 0.1 else 0.0 for name in LEVELS}


def _clash(backdrop: Backdrop) -> float:
    """Distance of sky and ground from the usual ones, relative to the clashing palette in whose direction they went."""
    moved = np.concatenate((backdrop.sky - np.array(SKY), backdrop.soil - np.array(GROUND)))
    best, weight = -1.0, 0.0
    for sky, ground in CLASHES:
        path = np.array((*np.subtract(sky, SKY), *np.subtract(ground, GROUND)), np.float32)
        alike = float(moved @ path / (np.linalg.norm(path) * max(1e-3, np.linalg.norm(moved))))
        if alike > best:
            best, weight = alike, float(np.linalg.norm(moved) / np.linalg.norm(path))
    return (weight - 0.1) / 0.75


def _clutter(bright: np.ndarray, drawn: np.ndarray, backdrop: Backdrop, found: list[Found]) -> float:
    """Area that only litter explains, outside objects, in pieces; every pixel counts by how far it went from the drawing to litter."""
    free = np.ones((SIZE, SIZE), bool)
    for item in found:
        reach = item.half + 2
        free[max(0, item.y - reach) : max(0, item.y + reach + 1), max(0, item.x - reach) : max(0, item.x + reach + 1)] = False
    path = LITTER.mean(0) - drawn
    cover = np.clip(((bright - drawn) * path).sum(2) / np.square(path).sum(2), -1.0, 1.5)
    pieces = float(cover[free].mean()) * SIZE**2 / STICK
    return (pieces - 4) / 20


def _cropping(found: list[Found]) -> float:
    """Cut share of the object that the frame cuts most."""
    cut = max((max(item.half - item.x, item.x + item.half - SIZE + 1, 0) / (2 * item.half + 1) for item in found), default=0.0)
    return (cut - 0.1) / 0.35 if cut > 0 else 0.0
