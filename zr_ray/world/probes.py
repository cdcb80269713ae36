"""Pictures that should score low whatever the prompt, beside good scenes: what a reward that is optimized against tends
to favor.

A generator under reward training drifts to noise, flat areas, blobs or a grid over a good picture; a judge that has
only seen rendered scenes was never told that these are bad. The verifier's scores of the same pictures are the
reference.
Left out on purpose: adversarial search for worse ones.
"""

from __future__ import annotations

import numpy as np

from zr_ray.world.render import GROUND, SKY, render
from zr_ray.world.sampling import sample_request
from zr_ray.world.scene import SIZE, Request, Scene, place

PROBES = (
    "good scene",
    "noise",
    "flat color",
    "checkerboard",
    "blobs",
    "grid over scene",
    "stripes on background",
    "tinted background",
    "speckled background",
)
GRID_STEP, GRID_DEPTH = 8, 40
"""Pixels between the lines of the grid, and by how many gray levels they are lighter."""
BACKGROUND_REACH = 30
"""Gray levels, largest over channels, by which a pixel may differ from sky or ground and still be background."""


def probe_images(count: int, seed: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """(count prompts, probe -> [count, 64, 64, 3] uint8); prompt i belongs to picture i of every probe."""
    rng = np.random.default_rng((seed, 0x9B0BE))
    requests = [sample_request(rng) for _ in range(count)]
    scenes = [_flawless(request, rng) for request in requests]
    good = np.stack([render(scene) for scene in scenes])
    pictures = {
        "good scene": good,
        "noise": rng.integers(0, 256, good.shape, dtype=np.uint8),
        "flat color": np.broadcast_to(rng.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8), good.shape).copy(),
        "checkerboard": np.stack([_checkerboard(rng) for _ in range(count)]),
        "blobs": np.stack([_blobs(rng) for _ in range(count)]),
        "grid over scene": with_grid(good),
        "stripes on background": np.stack([_striped(image, rng) for image in good]),
        "tinted background": np.stack([_tinted(image, rng) for image in good]),
        "speckled background": np.stack([_speckled(image, rng) for image in good]),
    }
    return [request.prompt for request in requests], pictures


def odd_picture(request: Request, seed: int) -> np.ndarray:
    """[64, 64, 3] uint8: one of the PROBES for a request, chosen and drawn by the seed; what judges are told is bad."""
    rng = np.random.default_rng((seed, 0x0DD))
    kind = PROBES[int(rng.integers(len(PROBES)))]
    good = render(_flawless(request, rng))
    blank = {
        "noise": lambda: rng.integers(0, 256, good.shape, dtype=np.uint8),
        "flat color": lambda: np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), good.shape).copy(),
        "checkerboard": lambda: _checkerboard(rng),
        "blobs": lambda: _blobs(rng),
        "grid over scene": lambda: with_grid(good),
        "stripes on background": lambda: _striped(good, rng),
        "tinted background": lambda: _tinted(good, rng),
        "speckled background": lambda: _speckled(good, rng),
    }
    return blank[kind]() if kind in blank else good


def with_grid(images: np.ndarray) -> np.ndarray:
    """[.., 64, 64, 3] uint8 with every eighth row and column lighter: the pattern of an 8 x 8 patch decoder gone
    wrong."""
    lifted = images.astype(np.int16)
    lifted[..., ::GRID_STEP, :, :] += GRID_DEPTH
    lifted[..., ::GRID_STEP, :] += GRID_DEPTH
    return np.clip(lifted, 0, 255).astype(np.uint8)


def _flawless(request, rng: np.random.Generator) -> Scene:
    light = "left" if rng.random() < 0.5 else "right"
    return place(request.first, request.second, None, request.relation, light=light, seed=int(rng.integers(2**62)))


def _checkerboard(rng: np.random.Generator) -> np.ndarray:
    """Squares of 2 to 16 pixels in two random colors."""
    side = int(rng.choice((2, 4, 8, 16)))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    two = rng.integers(0, 256, (2, 3), dtype=np.uint8)
    return two[(rows // side + columns // side) % 2]


def _blobs(rng: np.random.Generator) -> np.ndarray:
    """One to three Gaussian blobs of random colors over sky and ground."""
    image = np.empty((SIZE, SIZE, 3))
    image[:42], image[42:] = SKY, GROUND
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for _ in range(int(rng.integers(1, 4))):
        row, column, width = *rng.uniform(8, 56, 2), rng.uniform(3, 9)
        cover = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))[..., None]
        image = image * (1 - cover) + cover * rng.uniform(0, 255, 3)
    return image.astype(np.uint8)


def _on_background(image: np.ndarray, change: np.ndarray) -> np.ndarray:
    """[64, 64, 3] uint8 with `change`, in gray levels, added where sky or ground is seen."""
    away = [np.abs(image.astype(int) - np.asarray(color)).max(-1) for color in (SKY, GROUND)]
    seen = (np.minimum(*away) <= BACKGROUND_REACH)[..., None]
    return np.clip(image + seen * change, 0, 255).round().astype(np.uint8)


def _striped(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows, columns or diagonals lighter and darker by 15 gray levels, with a period of 2 to 8 pixels."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    along = (rows, columns, rows + columns)[int(rng.integers(3))]
    return _on_background(image, 15 * np.sin(2 * np.pi * along / rng.uniform(2, 8) + rng.uniform(0, 6))[..., None])


def _tinted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A color cast of up to 45 gray levels a channel."""
    return _on_background(image, rng.uniform(-45, 45, 3))


def _speckled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fine colored grain of standard deviation 14 gray levels."""
    return _on_background(image, rng.normal(0, 14, image.shape))
