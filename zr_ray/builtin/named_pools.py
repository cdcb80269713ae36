"""The pools of generated images that the shipped judges are trained and measured on, as recipes.

train        every prompt that is not held out, eight images each, mixed settings
more         the same prompts, four further images each
dev          64 held-out prompts x 8, 8 steps without guidance: to watch a training by
test         128 other held-out prompts x 8, 8 steps without guidance      test_guided   the same at the shipped
guidance
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zr_ray.builtin.tiny_generator import ASSET, GUIDANCE_SCALE, SAMPLING_STEPS
from zr_ray.world.image_pool import TRAINING_SHARES, PoolRecipe, SamplingShare, weights_hash
from zr_ray.world.prompts import held_out_prompts, known_prompts

DEV_PROMPTS, TEST_PROMPTS = 64, 128
PLAIN = (SamplingShare(SAMPLING_STEPS, 0.0, 1.0),)
GUIDED = (SamplingShare(SAMPLING_STEPS, GUIDANCE_SCALE, 1.0),)
ODD = "odd pictures 1"
"""Stands in the place of a generator's hash in the recipe of pool odd; the number counts what `probes` can draw."""
POOLS = ("dev", "test", "test_guided", "train", "more", "odd")


def named_pool(name: str, generator: Path = ASSET) -> PoolRecipe:
    """One of POOLS for a generator folder. Raises: KeyError for another name."""
    held_out = held_out_prompts()
    order = np.random.default_rng(0x7E57).permutation(len(held_out))
    test, dev = (
        tuple(held_out[i] for i in part)
        for part in (order[:TEST_PROMPTS], order[TEST_PROMPTS : TEST_PROMPTS + DEV_PROMPTS])
    )
    known = tuple(known_prompts())
    prompts, images, shares, seed = {
        "train": (known, 8, TRAINING_SHARES, 0),
        "more": (known, 4, TRAINING_SHARES, 1),
        "dev": (dev, 8, PLAIN, 2),
        "test": (test, 8, PLAIN, 3),
        "test_guided": (test, 8, GUIDED, 3),
        "odd": (known[::17], 8, PLAIN, 4),
    }[name]
    return PoolRecipe(prompts, images, shares, seed, ODD if name == "odd" else weights_hash(generator))
