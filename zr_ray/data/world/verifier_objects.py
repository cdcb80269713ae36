"""Objects of a picture by analysis and synthesis: which shape, size, colour and place explains most of what the backdrop does not.

For a hypothesis H (fill coverage a, outline coverage e, colour c) drawn over a background b, the squared error that it removes is

    gain(H) = sum |I - b|^2 - sum |I - b - D|^2,   D = a (c - b) + e (outline - b)

`propose` evaluates it for all places at half resolution by FFT, `fit_objects` at full resolution with blurred
templates. Both are exact least squares, so noise averages out over an object instead of flipping single pixels.
Left out on purpose: other colours, shapes and sizes than the world's; what does not fit is left for the residual to complain about.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from zr_ray.data.world.render import OUTLINE, RGB, shape_mask
from zr_ray.data.world.scene import COLOURS, HALF_WIDTH, SHAPES, SIZE, SIZES

KINDS = tuple((shape, size) for shape in SHAPES for size in SIZES)
PALETTE = np.array([RGB[name] for name in COLOURS], np.float32)
"""[6, 3] fill colours in the order of COLOURS."""
_INKS = np.concatenate((PALETTE, OUTLINE[None])).astype(np.float32)  # [7, 3], outline last
MARGIN = 12
"""Pixels of padding around the picture, so that windows of objects cut by the frame stay inside the array."""
CORE = (slice(MARGIN, MARGIN + SIZE),) * 2
"""The picture inside a padded array."""
WINDOW = 10
"""Half side of a fitting window, pixels."""
STEPS = 3
"""Most moves of a fit that runs to the edge of its reach."""
BLURS = (0.0, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8)
"""Gaussian standard deviations, pixels, that templates exist for."""
MIN_FIT = 0.5
"""An object explains at least this share of the energy it would bring."""
MIN_GAIN = 40 * 60.0**2
"""Squared grey levels an object must explain: 60 pixels that are off by 60, about the faintest small object."""
_HIGHEST = np.float32(8000)
_LOWEST = np.array([-8000] * 6 + [0], np.float32)
"""Limits of a pixel's evidence in proposals. Outlines, one pixel wide, never count against a place at half resolution."""
CANDIDATES, BLIND_CANDIDATES = 5, 2
"""Proposals kept per round: places that an ink explains, and places where much is unexplained whatever the ink."""
BLIND_FLOOR = 900.0
"""Squared grey levels per pixel below which nothing counts as unexplained."""


@dataclass(frozen=True)
class Found:
    """One object as it was fitted."""

    kind: int
    """Index into KINDS."""
    colour: int
    """Index into COLOURS."""
    x: int
    """Column of the centre."""
    y: int
    """Row of the centre."""
    fit: float
    """gain / energy: 1 for a perfect match, whatever the noise; 0 when it explains nothing."""
    gain: float
    """Squared grey levels explained."""

    @property
    def shape(self) -> str:
        return KINDS[self.kind][0]

    @property
    def size(self) -> str:
        return KINDS[self.kind][1]

    @property
    def half(self) -> int:
        return HALF_WIDTH[self.size]


@lru_cache(maxsize=None)
def coverage(kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill and outline of a kind, each [2 half + 1, 2 half + 1] bool."""
    shape, size = KINDS[kind]
    mask = np.pad(shape_mask(shape, HALF_WIDTH[size]), 1)
    core = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    mask = mask[1:-1, 1:-1]
    return mask & core, mask & ~core


def paint(image: np.ndarray, kind: int, colour: int, x: int, y: int) -> None:
    """Draw an object into a [64, 64, 3] float32 picture, in place, clipped by the frame."""
    half = HALF_WIDTH[KINDS[kind][1]]
    rows, columns = slice(max(0, y - half), min(SIZE, y + half + 1)), slice(max(0, x - half), min(SIZE, x + half + 1))
    cut = slice(rows.start - y + half, rows.stop - y + half), slice(columns.start - x + half, columns.stop - x + half)
    for mask, ink in zip(coverage(kind), (PALETTE[colour], OUTLINE), strict=True):
        image[rows, columns][mask[cut]] = ink


def gaussian(length: int, sigma: float) -> np.ndarray:
    """[length, length] float32 matrix that blurs along an axis, weights renormalised at the ends; the identity for sigma 0."""
    if sigma <= 0:
        return np.eye(length, dtype=np.float32)
    at = np.arange(length)
    kernel = np.exp(-0.5 * np.square((at[:, None] - at) / sigma))
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=None)
def _bank(blur: int, reach: int) -> np.ndarray:
    """Templates of BLURS[blur], [8 kinds * (2 reach + 1)^2 shifts, 441 window pixels * 5]: per pixel fill, outline, fill^2, fill outline, outline^2,
    each with the factor that it has in the gain: 2, 2, -1, -2, -1."""
    side, shifts = 2 * WINDOW + 1, range(-reach, reach + 1)
    kernel = gaussian(side, BLURS[blur])
    templates = []
    for kind, dy, dx in product(range(len(KINDS)), shifts, shifts):
        half = HALF_WIDTH[KINDS[kind][1]]
        parts = []
        for mask in coverage(kind):
            canvas = np.zeros((side + 8, side + 8), np.float32)
            top, left = WINDOW + dy - half + 4, WINDOW + dx - half + 4
            canvas[top : top + 2 * half + 1, left : left + 2 * half + 1] = mask
            parts.append((kernel @ canvas[4:-4, 4:-4] @ kernel.T).ravel())
        fill, outline = parts
        templates.append(np.stack((2 * fill, 2 * outline, -(fill**2), -2 * fill * outline, -(outline**2)), 1).ravel())
    return np.array(templates)


def _terms() -> np.ndarray:
    """[9, 5 * 6]: from (R, R.b, b, b.b, 1) of a pixel to R.(c-b), R.(o-b), |c-b|^2, (c-b).(o-b), |o-b|^2 for the six colours c."""
    matrix = np.zeros((9, 5, len(COLOURS)), np.float32)
    for k, c in enumerate(PALETTE):
        o = OUTLINE
        for term, ink in ((0, c), (1, o)):
            matrix[:3, term, k], matrix[3, term, k] = ink, -1
        for term, (one, other) in ((2, (c, c)), (3, (c, o)), (4, (o, o))):
            matrix[4:7, term, k], matrix[7, term, k], matrix[8, term, k] = -(one + other), 1, one @ other
    return matrix.reshape(9, -1)


_TERMS = _terms()


_HALF = 40
"""Side of the half-resolution FFT grid: 32 cells and room for templates that stick out."""


@lru_cache(maxsize=None)
def _half_bank() -> np.ndarray:
    """[2, 8, 40, 21] complex64: conjugate spectra of fills and outlines averaged over 2 x 2 pixels, centred on the origin."""
    canvas = np.zeros((2, len(KINDS), 2 * _HALF, 2 * _HALF), np.float32)
    for kind in range(len(KINDS)):
        half = HALF_WIDTH[KINDS[kind][1]]
        for part, mask in enumerate(coverage(kind)):
            canvas[part, kind, : 2 * half + 1, : 2 * half + 1] = mask
            canvas[part, kind] = np.roll(canvas[part, kind], (-half, -half), (0, 1))
    pooled = canvas.reshape(2, len(KINDS), _HALF, 2, _HALF, 2).sum((3, 5))
    return np.conj(np.fft.rfft2(pooled)).astype(np.complex64)


def propose(image: np.ndarray, background: np.ndarray, noise: float) -> list[tuple[int, int]]:
    """Places (x, y) that may hold an object, best first: those where an ink explains much, then those where anything is unexplained.

    Args: image, background: [64, 64, 3] float32 at full brightness. noise: standard deviation, grey levels."""
    residual = image - background
    linear = residual @ _INKS.T - (residual * background) @ _ONES  # [64, 64, 7]
    square = (background * background) @ _ONES - 2 * background @ _INKS.T + (_INKS * _INKS).sum(1)
    inks = _pool(np.clip(2 * linear - square, _LOWEST, _HIGHEST))  # [32, 32, 7]
    blind = np.square(_pool(residual)) @ _ONES - np.float32(3 * noise**2 / 4 + BLIND_FLOOR)
    evidence = np.zeros((3, _HALF, _HALF), np.float32)
    evidence[0, :32, :32] = inks[:, :, :6].max(2)
    evidence[1, :32, :32] = inks[:, :, 6]
    evidence[2, :32, :32] = np.clip(blind[:, :, 0], -BLIND_FLOOR, 2 * BLIND_FLOOR)
    spectrum = np.fft.rfft2(evidence)
    fills, outlines = _half_bank()
    scores = np.concatenate((spectrum[0] * fills + spectrum[1] * outlines, spectrum[2] * fills[:2]))  # blind: discs, small and big
    maps = np.fft.irfft2(scores, s=(_HALF, _HALF))
    return _peaks(maps[:-2].max(0), CANDIDATES) + _peaks(maps[-2:].max(0), BLIND_CANDIDATES)


def _pool(image: np.ndarray) -> np.ndarray:
    """[64, 64, C] -> [32, 32, C] means of 2 x 2 pixels."""
    tall = image[0::2] + image[1::2]
    return (tall[:, 0::2] + tall[:, 1::2]) * np.float32(0.25)


def _peaks(gains: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Up to `most` places (x, y), pixels, of positive maxima at least 3 half-resolution cells apart."""
    places = []
    while len(places) < most:
        row, column = divmod(int(gains.argmax()), _HALF)
        if gains[row, column] <= 0:
            break
        y, x = (2 * (i if i < 36 else i - _HALF) for i in (row, column))
        places.append(_inside(x, y))
        gains[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = 0
    return places


@dataclass(frozen=True)
class Sheet:
    """What objects are fitted on, all padded by MARGIN to [88, 88, ..]."""

    image: np.ndarray
    """[88, 88, 3] float32, full brightness."""
    background: np.ndarray
    """[88, 88, 3] float32: everything but the object looked for."""
    weight: np.ndarray
    """[88, 88] float32 trust in each pixel; 0 outside the frame."""


def pad(picture: np.ndarray) -> np.ndarray:
    """[64, 64, ..] -> [88, 88, ..] float32, zeros around."""
    padded = np.zeros((SIZE + 2 * MARGIN, SIZE + 2 * MARGIN, *picture.shape[2:]), np.float32)
    padded[CORE] = picture
    return padded


def fit_objects(sheet: Sheet, places: list[tuple[int, int]], blur: int, reach: int, met: tuple[Found, ...] = ()) -> list[Found]:
    """The object that explains most around each place (x, y), pixels of the picture; all places at once, in one matrix product.

    Args: blur: index into BLURS. reach: largest shift tried at once, repeated while the best lies at its edge. met: objects in the
    background that these may interpenetrate; where they do, both colours show in equal parts."""
    bank, width = _bank(blur, reach), 2 * reach + 1
    fitted: list[Found | None] = [None] * len(places)
    moving = dict(enumerate(places))
    for step in range(STEPS):
        if not moving:
            break
        terms = np.stack([_pixel_terms(sheet, x, y, met) for x, y in moving.values()], 1)  # [441 * 5, places, 6]
        gains = (bank @ terms.reshape(len(terms), -1)).reshape(len(bank), len(moving), -1)
        for which, (index, (x, y)) in enumerate(list(moving.items())):
            gain = gains[:, which]
            template, colour = divmod(int(gain.argmax()), len(COLOURS))
            kind, shift = divmod(template, width**2)
            dy, dx = shift // width - reach, shift % width - reach
            x, y = _inside(x + dx, y + dy)
            moving[index] = x, y
            if max(abs(dx), abs(dy)) < reach or step == STEPS - 1:
                del moving[index]
                most = float(gain[template, colour])
                squares = bank[template].reshape(-1, 5)[:, 2:] * terms[:, which, colour].reshape(-1, 5)[:, 2:]
                fitted[index] = Found(kind, colour, x, y, most / max(1.0, -float(squares.sum())), most)
    return fitted


def _inside(x: int, y: int) -> tuple[int, int]:
    return min(SIZE - 1, max(0, x)), min(SIZE - 1, max(0, y))


def _pixel_terms(sheet: Sheet, x: int, y: int, met: tuple[Found, ...]) -> np.ndarray:
    """[441 * 5, 6]: the five terms of every pixel of the window around (x, y) for the six colours."""
    window = slice(y + MARGIN - WINDOW, y + MARGIN + WINDOW + 1), slice(x + MARGIN - WINDOW, x + MARGIN + WINDOW + 1)
    b = sheet.background[window].reshape(-1, 3)
    residual, w = sheet.image[window].reshape(-1, 3) - b, sheet.weight[window].reshape(-1, 1)
    if met:
        masks = [(_padded_cover(item)[window].ravel(), PALETTE[item.colour]) for item in met]
        return (_mixed_terms(residual, b, masks) * w[:, None]).reshape(-1, len(COLOURS))
    pixel = np.empty((len(b), 9), np.float32)
    pixel[:, :3], pixel[:, 3:4], pixel[:, 4:7], pixel[:, 7:8], pixel[:, 8] = residual, (residual * b) @ _ONES, b, (b * b) @ _ONES, 1
    pixel *= w
    return (pixel @ _TERMS).reshape(-1, len(COLOURS))


_ONES = np.ones((3, 1), np.float32)


def _mixed_terms(residual: np.ndarray, b: np.ndarray, met: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The terms of `_terms`, [441, 5, 6], with fill and outline replaced by the mean of both colours on other objects (mask, colour)."""
    fill = np.broadcast_to(PALETTE, (len(b), *PALETTE.shape)).copy()  # [441, 6, 3]
    outline = np.broadcast_to(_INKS[6], fill.shape).copy()
    for mask, colour in met:
        outline[mask] = fill[mask] = 0.5 * (PALETTE + colour)
    fill -= b[:, None]
    outline -= b[:, None]
    pairs = ((fill, residual[:, None]), (outline, residual[:, None]), (fill, fill), (fill, outline), (outline, outline))
    return np.stack([(one * other).sum(2) for one, other in pairs], 1)


def covered(item: Found) -> np.ndarray:
    """[64, 64] bool: the pixels an object covers."""
    return _padded_cover(item)[CORE]


def _padded_cover(item: Found) -> np.ndarray:
    mask = np.zeros((SIZE + 2 * MARGIN, SIZE + 2 * MARGIN), bool)
    top, left, side = item.y + MARGIN - item.half, item.x + MARGIN - item.half, 2 * item.half + 1
    fill, outline = coverage(item.kind)
    mask[top : top + side, left : left + side] = fill | outline
    return mask
