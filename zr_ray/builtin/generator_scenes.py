"""What the built-in generator is trained on: world scenes that answer their prompt, with moderate defects. SIMULATED
images.

The judges' scenes (`data/world/sampling.py`) are made to be judged: most are wrong somewhere, and heavily degraded. A
generator taught on them would learn that prompts mean little. Here every asked-for object is as asked; what is
sometimes off is what a fine-tuned generator is known to get wrong: support, shadow, contact, and a light touch of the
degradations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zr_ray.world.prompts import is_held_out
from zr_ray.world.render import render, shape_mask
from zr_ray.world.sampling import sample_request
from zr_ray.world.scene import COLORS, LEVELS, MIN_LEVEL, SHAPES, SIZE, SIZES, Layout, Request, Scene, place

CELL = 4
"""Pixels; `object_map` labels one pixel in the middle of every cell of this side."""
MAP_CLASSES = {"color": len(COLORS) + 1, "shape": len(SHAPES) + 1, "size": len(SIZES) + 1}
"""Classes of an object map per attribute; 0 is no object."""


@dataclass(frozen=True)
class Defects:
    """How often a training scene is off. Shares of scenes, in [0, 1]."""

    floating: float
    shadow_wrong: float
    overlap: float
    degraded: float
    """Share with exactly one degradation of `LEVELS`."""
    max_level: float
    """Levels of a degradation are uniform in [MIN_LEVEL, max_level]."""


@dataclass(frozen=True)
class SceneBatch:
    """Training examples. `maps` serves the auxiliary loss only."""

    prompts: list[str]
    pixels: Tensor
    """[B, 3, 64, 64] in [-1, 1]."""
    maps: Tensor
    """[B, 3, 16, 16] classes of the object seen at each cell: color, shape, size (`MAP_CLASSES`)."""


def evaluation_prompts(count: int, seed: int) -> list[str]:
    """Prompts in the world's own mix of one and two objects, the latter all held out and, as far as there are enough,
    distinct."""
    rng = np.random.default_rng((seed, 0xE7A1))
    prompts: list[str] = []
    while len(prompts) < count:
        prompt, tries = sample_request(rng).prompt, 0
        pair = len(prompt.split()) > 3
        while pair and (not is_held_out(prompt) or (prompt in prompts and tries < 1000)):
            candidate = sample_request(rng).prompt
            prompt, tries = (candidate, tries + 1) if len(candidate.split()) > 3 else (prompt, tries)
        prompts.append(prompt)
    return prompts


def training_prompts(count: int, seed: int) -> list[str]:
    """Prompts as the generator meets them in training: none is held out, they may repeat."""
    rng = np.random.default_rng((seed, 0x7EA1))
    prompts: list[str] = []
    while len(prompts) < count:
        prompt = sample_request(rng).prompt
        if not is_held_out(prompt):
            prompts.append(prompt)
    return prompts


def sample_scene(rng: np.random.Generator, defects: Defects) -> tuple[Request, Scene]:
    """A prompt that is not held out, and a scene that shows what it asks for."""
    request = sample_request(rng)
    while is_held_out(request.prompt):
        request = sample_request(rng)
    pair, stack = request.second is not None, request.relation in ("on", "under")
    draw = rng.random(12).tolist()
    overlap = pair and draw[0] < defects.overlap
    floating = 0 if draw[1] >= defects.floating or (stack and overlap) else 1 + (draw[2] < 0.5)
    levels = {}
    if draw[3] < defects.degraded:
        levels[LEVELS[int(draw[4] * len(LEVELS))]] = MIN_LEVEL + (defects.max_level - MIN_LEVEL) * draw[5]
    layout = Layout(
        ground=41 + (draw[6] < 0.5), offset=int(draw[7] * 13) - 6, gap=5 + (draw[8] < 0.5), floater=int(draw[9] < 0.5)
    )
    scene = place(
        request.first,
        request.second,
        None,
        request.relation,
        light="left" if draw[10] < 0.5 else "right",
        shadow_wrong=draw[11] < defects.shadow_wrong,
        floating=floating,
        overlap=overlap,
        levels=levels,
        layout=layout,
        seed=int(rng.integers(2**62)),
    )
    return request, scene


def object_map(scene: Scene) -> np.ndarray:
    """[3, 16, 16] uint8: color, shape and size class of the object at the middle of each cell, 0 where there is
    none."""
    canvas = np.zeros((3, SIZE, SIZE), np.uint8)
    for item in scene.objects:
        rows, columns = np.nonzero(shape_mask(item.shape, item.half))
        rows, columns = rows + item.y - item.half, columns + item.x - item.half
        inside = (rows >= 0) & (rows < SIZE) & (columns >= 0) & (columns < SIZE)
        classes = (1 + COLORS.index(item.color), 1 + SHAPES.index(item.shape), 1 + SIZES.index(item.size))
        canvas[:, rows[inside], columns[inside]] = np.array(classes, np.uint8)[:, None]
    return canvas[:, CELL // 2 :: CELL, CELL // 2 :: CELL]


def sample_batch(rng: np.random.Generator, count: int, defects: Defects) -> SceneBatch:
    """`count` fresh examples; the same generator state gives the same batch."""
    drawn = [sample_scene(rng, defects) for _ in range(count)]
    images = np.stack([render(scene) for _, scene in drawn])
    maps = np.stack([object_map(scene) for _, scene in drawn])
    pixels = torch.from_numpy(images).movedim(-1, 1).float() / 127.5 - 1
    return SceneBatch([request.prompt for request, _ in drawn], pixels, torch.from_numpy(maps).long())
