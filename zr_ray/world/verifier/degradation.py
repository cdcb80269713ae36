"""How degraded a picture is, measured against the scene that was read from it: blur, blocks, noise, dimming, clash,
clutter, cropping.

The scene is drawn again without degradation and compared: what blur and blockiness turn that drawing into the picture,
and how much is left over. Nothing here knows the renderer's levels; they are inverted from the measured quantities by
the renderer's own formulas.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np

from zr_ray.world.render import CLASHES, GROUND, LITTER, SKY, SUN
from zr_ray.world.scene import LEVELS, SIZE
from zr_ray.world.verifier.backdrop import SUN_SPOTS, Backdrop
from zr_ray.world.verifier.templates import BLURS, PALETTE, Found, covered, gaussian, paint

BLOCK = 4
"""Side of a compression block, pixels."""
_ONES = np.ones((3, 1), np.float32)
STICK = 4.5
"""Mean area of a piece of litter, pixels."""


def draw(backdrop: Backdrop, shade: np.ndarray | None, found: list[Found]) -> np.ndarray:
    """[64, 64, 3] float32: the scene at full brightness without degradation. shade: [64, 64] factor of the ground, 1
    outside shadows."""
    picture = np.repeat(backdrop.rows()[:, None], SIZE, axis=1)
    if backdrop.light:
        row, column = SUN_SPOTS[backdrop.light]
        picture[row - 5 : row + 6, column - 5 : column + 6][_disc()] = SUN
    if shade is not None:
        picture *= shade[:, :, None]
    for item in found:
        paint(picture, item.kind, item.color, item.x, item.y)
    for first, second in combinations(found, 2):
        if max(abs(first.x - second.x), abs(first.y - second.y)) <= first.half + second.half:
            picture[covered(first) & covered(second)] = (PALETTE[first.color] + PALETTE[second.color]) / 2
    return picture


@cache
def _disc() -> np.ndarray:
    axis = np.arange(-5, 6)
    return axis[:, None] ** 2 + axis**2 <= 5.3**2


def soften(picture: np.ndarray, blur: float) -> np.ndarray:
    """Gaussian blur of [N, N, 3] with standard deviation `blur` pixels."""
    if blur <= 0:
        return picture
    kernel = gaussian(len(picture), blur)
    return np.ascontiguousarray((kernel @ picture.transpose(2, 0, 1) @ kernel.T).transpose(1, 2, 0))


def block_means(picture: np.ndarray) -> np.ndarray:
    """The picture [H, W, 3] with every 4 x 4 block replaced by its mean; H and W are multiples of 4."""
    tall = picture[0::4] + picture[1::4] + picture[2::4] + picture[3::4]
    means = (tall[:, 0::4] + tall[:, 1::4] + tall[:, 2::4] + tall[:, 3::4]) * np.float32(1 / BLOCK**2)
    return means.repeat(BLOCK, 0).repeat(BLOCK, 1)


def fit_blur_and_blocks(bright: np.ndarray, drawn: np.ndarray, start: int) -> tuple[int, float]:
    """(index into BLURS, block weight in [0, 0.85]) that best turn the drawing into the picture, by least squares over
    both.

    Args: bright, drawn: [N, N, 3], cut from the pictures at multiples of 4. start: index into BLURS from which to go
    downhill."""

    def cost(index: int) -> tuple[float, int, float]:
        model = soften(drawn, BLURS[index])
        detail = model - block_means(model)
        error = bright - model
        slope, power = float(np.vdot(error, detail)), max(1.0, float(np.vdot(detail, detail)))
        weight = min(0.85, max(0.0, -slope / power))
        return float(np.vdot(error, error)) + 2 * weight * slope + weight**2 * power, index, weight

    best = cost(start)
    for step in (-1, 1):
        while 0 <= best[1] + step < len(BLURS) and (other := cost(best[1] + step))[0] < best[0]:
            best = other
    return best[1], best[2]


def blur_of_sun(bright: np.ndarray, backdrop: Backdrop) -> tuple[int, float]:
    """A first `fit_blur_and_blocks`, from the 16 x 16 corner that holds the sun; (2, 0), little blur, without a sun."""
    if not backdrop.light:
        return 2, 0.0
    corner = slice(0, 16), slice(0, 16) if backdrop.light == "left" else slice(SIZE - 16, SIZE)
    return fit_blur_and_blocks(bright[corner], draw(backdrop, None, [])[corner], 2)


def deblock(bright: np.ndarray, weight: float, noise: float, blur: int) -> tuple[np.ndarray, int]:
    """Undo a blend towards block means, held back where noise would be blown up (a Wiener gain against detail of 50
    gray levels).

    Returns: the picture, and the index into BLURS that fits it when `blur` fits the scene: what is left of the blend
    blurs like a box of 4 pixels, standard deviation 4 / sqrt(12)."""
    if weight <= 0.05:
        return bright, blur
    means, keep = block_means(bright), 1 - weight
    wiener = keep / (keep**2 + (noise / 50.0) ** 2)
    sigma = (BLURS[blur] ** 2 + max(0.0, 1 - keep * wiener) * BLOCK**2 / 12) ** 0.5
    return means + (bright - means) * np.float32(wiener), int(np.argmin(np.abs(np.array(BLURS) - sigma)))


def levels(
    bright: np.ndarray, drawn: np.ndarray, backdrop: Backdrop, blur: float, weight: float, found: list[Found]
) -> dict[str, float]:
    """LEVELS -> [0, 1], by inverting the renderer's formulas; below 0.1 counts as absent.

    Args: bright: [64, 64, 3] the picture at full brightness. drawn: the scene read from it, blurred and blocked as
        measured. blur: pixels. weight: block weight."""
    path = LITTER.mean(0) - drawn  # [64, 64, 3] from the drawing to litter
    length = np.square(path) @ _ONES[:, 0]
    moved = ((bright - drawn) * path) @ _ONES[:, 0] / np.maximum(length, 1)  # [64, 64] how far, 1 all the way
    measured = {
        "noise": (max(backdrop.noise, backdrop.gain * _artifacts(bright - drawn, moved)) - 5) / 25,
        "blur": (blur - 0.5) / 1.3,
        "blocks": (weight - 0.25) / 0.55,
        "clash": _clash(backdrop),
        "clutter": _clutter(moved, length, backdrop, found),
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


def _clutter(moved: np.ndarray, length: np.ndarray, backdrop: Backdrop, found: list[Found]) -> float:
    """Area that only litter explains, outside objects, in pieces; every pixel counts by how far it went from the
    drawing to litter.

    Blurred litter darkens the measured sky and ground themselves, so each is taken from its cleanest quarter of 4 x 4
    blocks."""
    free = np.ones((SIZE, SIZE), bool)
    for item in found:
        reach = item.half + 2
        free[
            max(0, item.y - reach) : max(0, item.y + reach + 1), max(0, item.x - reach) : max(0, item.x + reach + 1)
        ] = False
    free &= length > 60.0**2  # on shadows litter does not show
    cover = np.where(free, np.clip(moved, -1.5, 1.5), 0)
    n, row = SIZE // BLOCK, (backdrop.ground or SIZE) // BLOCK
    counts, sums = (grid.reshape(n, BLOCK, n, BLOCK).sum((1, 3)) for grid in (free, cover))
    spread = backdrop.noise / backdrop.gain / float(np.sqrt(np.median(length))) / BLOCK  # of a block's mean
    area, pixels = 0.0, 0
    for part in (slice(0, row), slice(row + 1, n)):
        whole = counts[part] > BLOCK**2 // 2
        if whole.any():
            means = sums[part][whole] / counts[part][whole]
            clean = float(np.percentile(means, 25)) + 0.67 * spread
            area, pixels = area + float((means - clean).mean()) * means.size, pixels + means.size
    return (area / max(1, pixels) * SIZE**2 / STICK - 4) / 20


def _artifacts(error: np.ndarray, moved: np.ndarray) -> float:
    """Root mean square of what neither the scene nor dark litter explains, gray levels at full brightness, single
    pixels held at 60.

    White noise gives its standard deviation; grids and smears, which pixel-to-pixel noise misses, count like noise of
    their size."""
    left = np.minimum(error * error, 60.0**2) @ _ONES[:, 0]
    rest = moved <= 0.2
    return float(np.sqrt(left[rest].mean() / 3)) if rest.any() else 60.0


def _cropping(found: list[Found]) -> float:
    """Cut share of the object that the frame cuts most."""
    cut = max(
        (max(item.half - item.x, item.x + item.half - SIZE + 1, 0) / (2 * item.half + 1) for item in found), default=0.0
    )
    return (cut - 0.1) / 0.35 if cut > 0 else 0.0
