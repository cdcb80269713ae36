"""The gate's figures on images whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from zr_ray.builtin.generator_gate import GATE, mean_with_error, passed, read_images, seed_distance
from zr_ray.builtin.generator_scenes import Defects, sample_scene
from zr_ray.world.render import render


@pytest.fixture(scope="module")
def clean():
    rng = np.random.default_rng(4)
    drawn = [sample_scene(rng, Defects(0, 0, 0, 0, 0.5)) for _ in range(40)]
    return np.stack([render(scene) for _, scene in drawn]), [request.prompt for request, _ in drawn]


def test_flawless_scenes_match_their_prompts_and_not_the_shuffled_ones(clean):
    read = read_images(*clean)
    assert read["match"].mean() >= 0.95 and read["alignment"].mean() > 4.8
    assert read["shuffled_match"].mean() <= 0.05 and read["shuffled_alignment"].mean() < 3.5


def test_shuffling_means_the_next_prompt(clean):
    images, prompts = clean
    rotated = read_images(
        np.roll(images, 1, axis=0), prompts
    )  # image i now stands at i + 1, its prompt is the one before
    back = read_images(images[::-1], prompts[::-1])
    assert rotated["match"].mean() <= 0.05
    assert back["match"].tolist() == read_images(images, prompts)["match"][::-1].tolist()
    three, following = images[[1, 2, 0]], [prompts[1], prompts[2], prompts[0]]
    assert (
        read_images(three, prompts[:3])["shuffled_match"].tolist()
        == read_images(three, following)["match"].tolist()
        == [1, 1, 1]
    )


def test_noise_and_flat_color_match_nothing():
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    flat = np.full((4, 64, 64, 3), 128, np.uint8)
    for images in (noise, flat):
        read = read_images(images, ["small red circle"] * 4)
        assert read["match"].sum() == 0 and read["alignment"].max() <= 2


def test_mean_and_error_by_hand():
    assert mean_with_error(np.array([1.0, 0.0, 1.0, 0.0])) == pytest.approx((0.5, (1 / 3) ** 0.5 / 2))
    assert mean_with_error(np.array([0.3])) == (0.3, 0.0)


def test_seed_distance_by_hand():
    images = np.zeros((3, 2, 64, 64, 3), np.uint8)
    images[1] = 3
    images[2] = 9
    assert seed_distance(images) == pytest.approx((3 + 9 + 6) / 3)
    assert seed_distance(np.full((2, 1, 64, 64, 3), 200, np.uint8)) == 0


def test_gate_counts_its_ends_in_and_absent_figures_out():
    figures = {name: low for name, (low, _) in GATE.items()}
    assert all(passed(figures).values())
    assert not passed(figures | {"object_match": 0.81})["object_match"]
    assert not passed({})["image_ms"]
