"""Training examples of the tiny judge, rendered and generated alike: an image, what is in it, what was asked, scores
and chains.

Rendered scenes are fresh for every step, with their true scores; generated images come from a pool, with what the
verifier reads. Held-out prompts never occur. A generated image is mirrored half the time, with left and right swapped
in prompt and reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zr_ray.rubric import DIMENSIONS
from zr_ray.world import perception_targets, render
from zr_ray.world.image_pool import ImagePool
from zr_ray.world.prompts import edited, in_half, is_held_out
from zr_ray.world.reading_chains import mirrored_reading, mirrored_request, reading_chains, scene_reading
from zr_ray.world.sampling import sample_known_group
from zr_ray.world.scene import Request, Scene
from zr_ray.world.verifier.reading import SceneReading
from zr_ray.world.verifier.scores import alignment_score, parse_prompt


@dataclass(frozen=True)
class Example:
    """One image with one request."""

    image: np.ndarray
    """[64, 64, 3] uint8."""
    request: Request
    scene: Scene | SceneReading
    """What was drawn, or what the verifier read."""
    truth: dict[str, float]
    """Dimension -> score in [1, 5]: true, or measured."""
    reasoning: dict[str, str]
    """Dimension -> chain."""

    @property
    def prompt(self) -> str:
        return self.request.prompt


def rendered_examples(rng: np.random.Generator, count: int, half: int = -1) -> list[Example]:
    """Fresh scenes, four candidates to a prompt, of one half of the prompts (`prompts.in_half`) or of all."""
    found: list[Example] = []
    while len(found) < count:
        group = sample_known_group(rng)
        if in_half(group[0].prompt, half):
            found += [
                Example(render(c.scene), c.request, c.scene, c.truth, c.reasoning) for c in group[: count - len(found)]
            ]
    return found


def pool_example(pool: ImagePool, index: int, mirrored: bool = False) -> Example:
    """Image `index` of a pool, or its mirror image."""
    request, reading, image = (
        parse_prompt(pool.prompts[pool.prompt[index]]),
        pool.reading(index),
        np.asarray(pool.images[index]),
    )
    if mirrored:
        request, reading, image = mirrored_request(request), mirrored_reading(reading), image[:, ::-1]
    truth = dict(zip(DIMENSIONS, pool.scores[index].tolist(), strict=True))
    return Example(image, request, reading, truth, reading_chains(request, reading))


def generated_examples(rng: np.random.Generator, pool: ImagePool, count: int, half: int = -1) -> list[Example]:
    """Random images of a pool, of one half of the prompts or of all; half of them mirrored unless the mirrored prompt
    may not be used."""
    found: list[Example] = []
    while len(found) < count:
        index, flip = int(rng.integers(len(pool))), bool(rng.random() < 0.5)
        if in_half(pool.prompts[pool.prompt[index]], half):
            example = pool_example(pool, index, flip)
            usable = not is_held_out(example.prompt) and in_half(example.prompt, half)
            found.append(example if usable else pool_example(pool, index))
    return found


def with_edit(rng: np.random.Generator, example: Example, half: int = -1) -> tuple[Request, float]:
    """(an almost right request that may be trained on, the image's alignment under it)."""
    request = edited(example.request, rng)
    while is_held_out(request.prompt) or not in_half(request.prompt, half):
        request = edited(example.request, rng)
    reading = scene_reading(example.scene) if isinstance(example.scene, Scene) else example.scene
    return request, alignment_score(reading, request.prompt)


def stacked_targets(examples: list[Example], grid: int) -> dict[str, Tensor]:
    """Perception targets of a batch, see `perception_targets`."""
    targets = [perception_targets(e.scene, grid) for e in examples]
    return {name: torch.from_numpy(np.stack([t[name] for t in targets])) for name in targets[0]}
