"""First step of the verifier: sun, brightness, sky, ground line and noise of any 64 x 64 picture, before any object is
looked for.

Everything is a robust statistic (medians, truncated squares), so that objects, litter and noise move it little.
Left out on purpose: backdrops of another kind than sky over ground with a sun in an upper corner; they read as "no
ground" or "no sun".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zr_ray.world.render import SKY, SUN
from zr_ray.world.scene import SIZE

SUN_SPOTS = {"left": (8, 8), "right": (8, SIZE - 9)}
"""Row and column where a sun's center is looked for."""
SUN_CONTRAST, SUN_MISFIT = 0.10, 0.16
"""A sun differs from its surroundings by at least, and from the sun's hue by at most, this share of its brightness."""
GRADIENT = np.linspace(-6, 24, SIZE, dtype=np.float32)
"""[64] lightening of the sky towards the ground, gray levels, as the renderer draws it."""
GROUND_ROWS = (16, 58)
"""A ground line above the first or below the second row is not one."""
_SUN = np.array(SUN, np.float32)
_ONES = np.ones(3, np.float32)


def _rings() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per corner the flat pixel indices inside the sun and around it."""
    y, x = np.mgrid[:SIZE, :SIZE]
    rings = {}
    for side, (row, column) in SUN_SPOTS.items():
        radius = np.hypot(y - row, x - column)
        rings[side] = (np.flatnonzero(radius <= 3.6), np.flatnonzero((radius >= 7) & (radius <= 9.5) & (y <= 15)))
    return rings


_RINGS = _rings()


@dataclass(frozen=True)
class Backdrop:
    """What lies behind the objects. Colors are RGB at full brightness, gray levels 0-255."""

    light: str
    """Corner of the sun, "left" or "right"; empty when no sun is seen."""
    gain: float
    """Brightness of the picture relative to a well-lit one; 1 when not dimmed."""
    sky: np.ndarray
    """[3] float32: the sky without its gradient."""
    soil: np.ndarray
    """[3] float32: the ground outside shadows."""
    ground: int | None
    """First row of the ground; None when there is no ground line."""
    noise: float
    """Standard deviation of pixel-to-pixel noise, gray levels of the picture as it is."""

    def rows(self) -> np.ndarray:
        """[64, 3] float32: color of every row at full brightness."""
        rows = self.sky + GRADIENT[:, None]
        if self.ground is not None:
            rows[self.ground :] = self.soil
        return rows


def read_backdrop(image: np.ndarray) -> Backdrop:
    """Backdrop of a picture. image: [64, 64, 3] float32, gray levels 0-255."""
    light, gain = _sun(image)
    if not light:
        top = np.median(image[:12].reshape(-1, 3), 0)
        gain = float(np.clip(top @ np.array(SKY) / np.dot(SKY, SKY), 0.3, 1.0))
    bright = image * np.float32(1 / gain)
    level = bright - GRADIENT[:, None, None]
    sky, soil = np.median(level[:30:3, ::3].reshape(-1, 3), 0), np.median(bright[50::2, ::3].reshape(-1, 3), 0)
    ground = _ground_line(level, bright, sky, soil)
    if ground is not None:
        above, below = level[: ground - 2].reshape(-1, 3), bright[ground + 2 :].reshape(-1, 3)
        sky, soil = _inlier_mean(above, sky), _inlier_mean(below, soil)
        ground = _counted_line(bright, sky, soil, ground)
    return Backdrop(light, gain, sky.astype(np.float32), soil.astype(np.float32), ground, _noise(image))


def _sun(image: np.ndarray) -> tuple[str, float]:
    """(corner, brightness); ("", 1) when neither corner holds a disc of the sun's hue that stands out."""
    flat, best = image.reshape(-1, 3), ("", 1.0, 0.0)
    for side, (inside, around) in _RINGS.items():
        disc, ring = np.median(flat[inside], 0), np.median(flat[around], 0)
        gain = float(disc @ _SUN / (_SUN @ _SUN))
        scale = max(1.0, gain * float(np.linalg.norm(_SUN)))
        contrast, misfit = np.linalg.norm(disc - ring) / scale, np.linalg.norm(disc - gain * _SUN) / scale
        if contrast > SUN_CONTRAST and misfit < SUN_MISFIT and contrast - misfit > best[2]:
            best = (side, gain, contrast - misfit)
    return best[0], float(np.clip(best[1], 0.2, 1.0))


def _ground_line(level: np.ndarray, bright: np.ndarray, sky: np.ndarray, soil: np.ndarray) -> int | None:
    """Row that best divides sky from ground under truncated squares; None when no division explains the picture."""
    apart = float(np.square(sky + GRADIENT[40] - soil).sum())
    if apart < 25.0**2:
        return None
    as_sky = np.minimum(np.square(level - sky) @ _ONES, apart).mean(1)  # [64]
    as_soil = np.minimum(np.square(bright - soil) @ _ONES, apart).mean(1)
    cost = np.concatenate(([0.0], np.cumsum(as_sky - as_soil)))
    first, last = GROUND_ROWS
    row = first + int(np.argmin(cost[first : last + 1]))
    drop = min(cost[first] - cost[row], cost[last] - cost[row]) / apart  # rows' worth of evidence on the weaker side
    return row if drop > 0.5 else None


CLEAN_COLUMNS = 8
"""Columns, those nearest to a mere blend of sky and ground, that the ground line is counted in."""


def _counted_line(bright: np.ndarray, sky: np.ndarray, soil: np.ndarray, near: int) -> int:
    """First row of the ground by counting how much sky each column holds, which neither blur nor 4 x 4 blocks
    change."""
    low = min(max(4, (near - 9) // 4 * 4), SIZE - 24)
    window, path = bright[low : low + 20] - soil, (sky - soil) + GRADIENT[low : low + 20, None]  # [20, 64, 3], [20, 3]
    share = (window * path[:, None]).sum(2) / np.square(path).sum(1, keepdims=True)  # 1 sky, 0 ground
    inside = np.clip(share, 0, 1)
    stray = np.square(window - inside[:, :, None] * path[:, None]).sum((0, 2))
    clean = np.argpartition(stray, CLEAN_COLUMNS)[:CLEAN_COLUMNS]
    counted = low + int(round(float(np.median(share[:, clean].sum(0)))))
    return counted if abs(counted - near) <= 2 else near


def _inlier_mean(pixels: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Mean of the pixels within a noise-dependent distance of the median."""
    distance = np.square(pixels - center) @ _ONES
    near = distance <= max(30.0**2, 6.0 * float(np.median(distance)))
    return pixels[near].mean(0)


def _noise(image: np.ndarray) -> float:
    """Robust standard deviation of the second difference along rows, scaled to that of a pixel (factor sqrt(6))."""
    part = image[::2]  # every other row is enough
    second = np.abs(part[:, 2:] - 2 * part[:, 1:-1] + part[:, :-2])
    return float(1.4826 / 6**0.5 * np.median(second))
