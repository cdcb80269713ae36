"""The fast sampler is the pipeline, and each image depends on its own prompt and seed alone."""

import numpy as np
import pytest

from zr_ray.builtin.packed_sampler import PackedSampler
from zr_ray.builtin.tiny_generator import generate, load_generator

PROMPTS = ["small red circle left of big blue square", "big green cross", "big white triangle on small purple square"]


@pytest.fixture(scope="module")
def pipeline():
    return load_generator()


@pytest.mark.parametrize(("steps", "guidance"), [(4, 0.0), (2, 1.5)])
def test_images_equal_the_pipelines(pipeline, steps, guidance):
    sampler = PackedSampler(pipeline, batch=2, compiled=False)
    wanted = generate(pipeline, PROMPTS, seed=7, steps=steps, guidance_scale=guidance).numpy().astype(int)
    seeds = [7 * 1_000_003 + i for i in range(len(PROMPTS))]
    got = sampler(PROMPTS, seeds, steps=steps, guidance_scale=guidance).astype(int)
    assert got.shape == (3, 64, 64, 3) and np.abs(got - wanted).max() <= 1
    alone = sampler(PROMPTS[2:], seeds[2:], steps=steps, guidance_scale=guidance).astype(int)
    assert np.abs(alone[0] - got[2]).max() <= 1


def test_noise_levels_fall_from_one_to_zero_without_an_idle_step(pipeline):
    levels = PackedSampler(pipeline, compiled=False).sigmas(8)
    assert levels[0] == 1.0 and levels[-1] == 0.0 and all(a > b for a, b in zip(levels, levels[1:], strict=False))
