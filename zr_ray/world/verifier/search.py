"""Where a picture may hold objects: places, found by correlation at half resolution, for `verifier_objects` to fit
at."""

from __future__ import annotations

from functools import cache

import numpy as np

from zr_ray.world.render import OUTLINE
from zr_ray.world.scene import HALF_WIDTH
from zr_ray.world.verifier.templates import KINDS, PALETTE, coverage, inside, pool

_INKS = np.concatenate((PALETTE, OUTLINE[None])).astype(np.float32)  # [7, 3], outline last
_SQUARES = (_INKS * _INKS).sum(1)
_ONES = np.ones((3, 1), np.float32)
_HIGHEST = np.float32(8000)
_LOWEST = np.array([-8000] * 6 + [0], np.float32)
"""Limits of a cell's evidence. Outlines, one pixel wide, never count against a place at half resolution."""
CANDIDATES, BLIND_CANDIDATES = 4, 1
"""Proposals kept per round: places that an ink explains, and places where much is unexplained whatever the ink."""
BLIND_FLOOR = 900.0
"""Squared gray levels per pixel below which nothing counts as unexplained."""


_HALF = 40
"""Side of the half-resolution FFT grid: 32 cells and room for templates that stick out."""


@cache
def _half_bank() -> np.ndarray:
    """[2, 8, 40, 21] complex64: conjugate spectra of fills and outlines averaged over 2 x 2 pixels, centered on the
    origin."""
    canvas = np.zeros((2, len(KINDS), 2 * _HALF, 2 * _HALF), np.float32)
    for kind in range(len(KINDS)):
        half = HALF_WIDTH[KINDS[kind][1]]
        for part, mask in enumerate(coverage(kind)):
            canvas[part, kind, : 2 * half + 1, : 2 * half + 1] = mask
            canvas[part, kind] = np.roll(canvas[part, kind], (-half, -half), (0, 1))
    pooled = canvas.reshape(2, len(KINDS), _HALF, 2, _HALF, 2).sum((3, 5))
    return np.conj(np.fft.rfft2(pooled)).astype(np.complex64)


def propose(image: np.ndarray, background: np.ndarray, noise: float) -> list[tuple[int, int]]:
    """Places (x, y) that may hold an object, best first: those where an ink explains much, then those where anything is
    unexplained.

    Args: image, background: [64, 64, 3] float32 at full brightness. noise: standard deviation, gray levels."""
    background = pool(background)
    residual = pool(image) - background  # [32, 32, 3]
    linear = residual @ _INKS.T - (residual * background) @ _ONES  # [32, 32, 7]
    square = (background * background) @ _ONES - 2 * background @ _INKS.T + _SQUARES
    inks = np.clip(2 * linear - square, _LOWEST, _HIGHEST)
    anything = (residual * residual) @ _ONES - np.float32(3 * noise**2 / 4 + BLIND_FLOOR)
    evidence = np.zeros((3, _HALF, _HALF), np.float32)
    evidence[0, :32, :32] = inks[:, :, :6].max(2)
    evidence[1, :32, :32] = inks[:, :, 6]
    evidence[2, :32, :32] = np.clip(anything[:, :, 0], -BLIND_FLOOR, 2 * BLIND_FLOOR)
    spectrum = np.fft.rfft2(evidence)
    fills, outlines = _half_bank()
    scores = np.concatenate(
        (spectrum[0] * fills + spectrum[1] * outlines, spectrum[2] * fills[:2])
    )  # blind: discs, small and big
    maps = np.fft.irfft2(scores, s=(_HALF, _HALF))
    places = _peaks(maps[:-2].max(0), CANDIDATES)
    blind = _peaks(maps[-2:].max(0), BLIND_CANDIDATES)
    return places + [(x, y) for x, y in blind if all(max(abs(x - a), abs(y - b)) > 2 for a, b in places)]


def _peaks(gains: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Up to `most` places (x, y), pixels, of positive maxima at least 3 half-resolution cells apart."""
    places = []
    while len(places) < most:
        row, column = divmod(int(gains.argmax()), _HALF)
        if gains[row, column] <= 0:
            break
        y, x = (2 * (i if i < 36 else i - _HALF) for i in (row, column))
        places.append(inside(x, y))
        gains[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = 0
    return places
