"""Image statistics: each figure sees what it is for and nothing else."""

import math

import pytest
import torch

from zr_ray.functional.image_statistics import image_statistics, seed_distance


def flat(value=0.5):
    return torch.full((1, 3, 64, 64), value)


def smooth():
    """A slope: no block, no stripe, no edge."""
    return torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64).clone()


def figures(image):
    return {name: value.item() for name, value in image_statistics(image).items()}


def test_stripes_are_seen_in_their_direction_only():
    image = smooth()
    image[:, :, ::4] += 0.1
    one, base = figures(image), figures(smooth())
    assert one["row_variance"] > 100 * max(base["row_variance"], 1e-7)
    assert one["column_variance"] == pytest.approx(base["column_variance"], rel=1e-3)


def test_blocks_of_eight_pixels_raise_blockiness():
    image = smooth()
    blocks = image.clone()
    blocks[:, :, :, 8:] += 0.05 * (torch.arange(64)[8:] // 8 % 2)
    assert figures(image)["blockiness"] == pytest.approx(1, abs=0.01)
    assert figures(blocks)["blockiness"] > 3


def test_noise_is_high_frequency_and_blur_is_not():
    random = torch.Generator().manual_seed(0)
    noisy = flat() + 0.1 * torch.randn(1, 3, 64, 64, generator=random)
    # all but the inner quarter of a flat spectrum
    assert figures(noisy)["high_frequency"] == pytest.approx(0.75, abs=0.03)
    assert figures(smooth())["high_frequency"] < 0.05  # the step where the picture wraps around is all there is


def test_edges_darkness_brightness_and_entropy_by_hand():
    halves = torch.cat([torch.zeros(1, 3, 64, 32), torch.ones(1, 3, 64, 32)], dim=3)
    got = figures(halves)
    assert got["edge_density"] == pytest.approx(1 / 63) and got["dark_frac"] == 0.5 and got["brightness"] == 0.5
    assert got["color_entropy"] == pytest.approx(math.log(2), abs=1e-4)
    assert figures(flat())["color_entropy"] == pytest.approx(0, abs=1e-4)


def test_seed_distance_is_zero_when_noise_is_ignored():
    same = torch.rand(2, 1, 3, 8, 8).expand(2, 3, 3, 8, 8)
    assert seed_distance(same).tolist() == [0, 0]
    assert seed_distance(torch.stack([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)], 1)).item() == 1
    with pytest.raises(ValueError, match="two images"):
        seed_distance(torch.zeros(1, 1, 3, 8, 8))
