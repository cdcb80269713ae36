"""Objects of a picture by analysis and synthesis: which shape, size, color and place explains most of what the
backdrop does not.

For a hypothesis H (fill coverage a, outline coverage e, color c) drawn over a background b, the squared error that it
removes is

    gain(H) = sum |I - b|^2 - sum |I - b - D|^2,   D = a (c - b) + e (outline - b)

`propose` evaluates it for all places at half resolution by FFT, `fit_objects` at full resolution with blurred
templates. Both are exact least squares, so noise averages out over an object instead of flipping single pixels.
Left out on purpose: other colors, shapes and sizes than the world's; what does not fit is left for the residual to
complain about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from zr_ray.world.render import OUTLINE
from zr_ray.world.scene import COLORS, SIZE
from zr_ray.world.verifier.templates import CORE, MARGIN, PALETTE, WINDOW, Found, bank, inside, padded_cover, pool

STEPS = 3
"""Most moves of a fit that runs to the edge of its reach."""
MIN_FIT = 0.5
"""An object explains at least this share of the energy it would bring."""
MIN_GAIN = 40 * 60.0**2
"""Squared gray levels an object must explain: 60 pixels that are off by 60, about the faintest small object."""


@dataclass(frozen=True)
class Sheet:
    """What objects are fitted on, all padded by MARGIN to [88, 88, ..]."""

    image: np.ndarray
    """[88, 88, 3] float32, full brightness."""
    background: np.ndarray
    """[88, 88, 3] float32: everything but the object looked for."""
    weight: np.ndarray
    """[88, 88, 1] float32 trust in each pixel; 0 outside the frame."""


def pad(picture: np.ndarray) -> np.ndarray:
    """[64, 64, ..] -> [88, 88, ..] float32, zeros around."""
    padded = np.zeros((SIZE + 2 * MARGIN, SIZE + 2 * MARGIN, *picture.shape[2:]), np.float32)
    padded[CORE] = picture
    return padded


def fit_objects(
    sheet: Sheet,
    places: list[tuple[int, int]],
    blur: int,
    reach: int,
    coarse: bool = False,
    met: tuple[Found, ...] = (),
) -> list[Found]:
    """The object that explains most around each place (x, y), pixels of the picture; all places at once, in one matrix
    product.

    Args: blur: index into BLURS. reach: largest shift tried at once, repeated while the best lies at its edge. coarse:
    compare means of 2 x 2 pixels, four times as fast. met: objects in the background that these may interpenetrate,
    where both colors show in equal parts; not with coarse."""
    templates, width = bank(blur, reach, coarse), 2 * reach + 1
    layers = [pool(layer) if coarse else layer for layer in (sheet.image, sheet.background, sheet.weight)]
    fitted: list[Found | None] = [None] * len(places)
    moving = dict(enumerate(places))
    for step in range(STEPS):
        if not moving:
            break
        if coarse:
            moving = {index: (x - x % 2, y - y % 2) for index, (x, y) in moving.items()}
        terms = np.stack(
            [_cell_terms(layers, x, y, coarse, met) for x, y in moving.values()], 1
        )  # [cells * 5, places, 6]
        gains = (templates @ terms.reshape(len(terms), -1)).reshape(len(templates), len(moving), -1)
        for which, (index, (x, y)) in enumerate(list(moving.items())):
            gain = gains[:, which]
            template, color = divmod(int(gain.argmax()), len(COLORS))
            kind, shift = divmod(template, width**2)
            dy, dx = shift // width - reach, shift % width - reach
            x, y = inside(x + dx, y + dy)
            moving[index] = x, y
            if max(abs(dx), abs(dy)) < reach or step == STEPS - 1:
                del moving[index]
                most = float(gain[template, color])
                squares = templates[template].reshape(-1, 5)[:, 2:] * terms[:, which, color].reshape(-1, 5)[:, 2:]
                fitted[index] = Found(kind, color, x, y, most / max(1.0, -float(squares.sum())), most)
    return cast(list[Found], fitted)  # the last step fits whatever still moved


def _cell_terms(layers: list[np.ndarray], x: int, y: int, coarse: bool, met: tuple[Found, ...]) -> np.ndarray:
    """[cells * 5, 6]: the five terms of every cell of the window around (x, y) for the six colors."""
    grain, cells = (2, WINDOW + 1) if coarse else (1, 2 * WINDOW + 1)
    top, left = (y + MARGIN - WINDOW) // grain, (x + MARGIN - WINDOW) // grain
    window = slice(top, top + cells), slice(left, left + cells)
    image, b, w = (layer[window].reshape(cells**2, -1) for layer in layers)
    residual = image - b
    if met:
        masks = [(padded_cover(item)[window].ravel(), PALETTE[item.color]) for item in met]
        return (_mixed_terms(residual, b, masks) * w[:, None]).reshape(-1, len(COLORS))
    cell = np.empty((len(b), 9), np.float32)
    cell[:, :3], cell[:, 3:4], cell[:, 4:7], cell[:, 7:8], cell[:, 8] = (
        residual,
        (residual * b) @ _ONES,
        b,
        (b * b) @ _ONES,
        1,
    )
    cell *= w * grain**2
    return (cell @ _TERMS).reshape(-1, len(COLORS))


_ONES = np.ones((3, 1), np.float32)


def _mixed_terms(residual: np.ndarray, b: np.ndarray, met: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The terms of `_terms`, [441, 5, 6], with fill and outline replaced by the mean of both colors on other objects
    (mask, color)."""
    fill = np.broadcast_to(PALETTE, (len(b), *PALETTE.shape)).copy()  # [441, 6, 3]
    outline = np.broadcast_to(OUTLINE, fill.shape).astype(np.float32)
    for mask, color in met:
        outline[mask] = fill[mask] = 0.5 * (PALETTE + color)
    fill -= b[:, None]
    outline -= b[:, None]
    pairs = ((fill, residual[:, None]), (outline, residual[:, None]), (fill, fill), (fill, outline), (outline, outline))
    return np.stack([(one * other).sum(2) for one, other in pairs], 1)


def _terms() -> np.ndarray:
    """[9, 5 * 6]: from (R, R.b, b, b.b, 1) of a pixel to R.(c-b), R.(o-b), |c-b|^2, (c-b).(o-b), |o-b|^2 for the six
    colors c."""
    matrix = np.zeros((9, 5, len(COLORS)), np.float32)
    for k, c in enumerate(PALETTE):
        o = OUTLINE
        for term, ink in ((0, c), (1, o)):
            matrix[:3, term, k], matrix[3, term, k] = ink, -1
        for term, (one, other) in ((2, (c, c)), (3, (c, o)), (4, (o, o))):
            matrix[4:7, term, k], matrix[7, term, k], matrix[8, term, k] = -(one + other), 1, one @ other
    return matrix.reshape(9, -1)


_TERMS = _terms()
