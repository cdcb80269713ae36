"""Figures of images that no reward sees and that show where training goes wrong: stripes, grids, blur, blackness,
sameness.

Each is read against the same figure of the untrained generator's images. Images are [N, 3, H, W], float in [0, 1];
luminance is the mean of the channels.
Left out on purpose: learned distances (FID, CLIP); they would be one more model that can be fooled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8
"""Pixels between the borders at which blockiness looks: the patch of most decoders and encoders."""
EDGE = 0.1
"""Luminance step between neighbors that counts as an edge, of 1."""
DARK = 0.1
"""Luminance below which a pixel is dark."""
SMOOTHED = 7
"""Rows or columns over which a profile is averaged; what is left are stripes."""
COLOR_LEVELS = 4
"""Levels a channel in the color histogram."""


def image_statistics(images: Tensor) -> dict[str, Tensor]:
    """Name -> [N]: blockiness, row_variance, column_variance, high_frequency, edge_density, dark_frac, brightness,
    color_entropy."""
    luminance = images.float().mean(1)
    return {
        "blockiness": blockiness(luminance),
        "row_variance": stripe_variance(luminance.mean(2)),
        "column_variance": stripe_variance(luminance.mean(1)),
        "high_frequency": high_frequency(luminance),
        "edge_density": edge_density(luminance),
        "dark_frac": (luminance < DARK).float().mean((1, 2)),
        "brightness": luminance.mean((1, 2)),
        "color_entropy": color_entropy(images),
    }


def blockiness(luminance: Tensor) -> Tensor:
    """Mean step across block borders over the mean step elsewhere; 1 without blocks.   luminance: [N, H, W].   Returns:
    [N]."""
    across, down = luminance.diff(dim=2).abs().mean(1), luminance.diff(dim=1).abs().mean(2)  # [N, W - 1], [N, H - 1]
    border, rest = [], []
    for steps in (across, down):
        at = torch.arange(steps.shape[1], device=steps.device) % BLOCK == BLOCK - 1
        border.append(steps[:, at].mean(1))
        rest.append(steps[:, ~at].mean(1))
    return (border[0] + border[1]) / (rest[0] + rest[1]).clamp_min(1e-6)


def stripe_variance(profile: Tensor) -> Tensor:
    """Variance of a profile's deviation from its moving average: stripes and bands, not slopes.   profile: [N, L].
    Returns: [N]."""
    smooth = F.avg_pool1d(
        F.pad(profile[:, None], (SMOOTHED // 2, SMOOTHED // 2), mode="replicate"), SMOOTHED, stride=1
    )[:, 0]
    return (profile - smooth).var(1, correction=0)


def high_frequency(luminance: Tensor) -> Tensor:
    """Share of the spectrum's energy, without the mean, beyond half of the Nyquist frequency.   luminance: [N, H, W].
    Returns: [N]."""
    height, width = luminance.shape[1:]
    power = torch.fft.rfft2(luminance).abs().square()
    power[:, 0, 0] = 0
    rows, columns = torch.fft.fftfreq(height, device=power.device).abs(), torch.fft.rfftfreq(width, device=power.device)
    twice = torch.where((columns > 0) & (columns < 0.5), 2.0, 1.0)  # rfft keeps one of each pair
    energy = power * twice
    high = torch.maximum(rows[:, None], columns[None]) > 0.25
    return energy[:, high].sum(1) / energy.sum((1, 2)).clamp_min(1e-12)


def edge_density(luminance: Tensor) -> Tensor:
    """Share of pixels whose step to the right or downward neighbor is an edge.   luminance: [N, H, W].   Returns:
    [N]."""
    right = luminance[:, :-1, 1:] - luminance[:, :-1, :-1]
    below = luminance[:, 1:, :-1] - luminance[:, :-1, :-1]
    return (torch.hypot(right, below) > EDGE).float().mean((1, 2))


def color_entropy(images: Tensor) -> Tensor:
    """Entropy of each image's color histogram, nats: falls when backgrounds go uniform.   images: [N, 3, H, W].
    Returns: [N]."""
    levels = (images.float() * COLOR_LEVELS).long().clamp(0, COLOR_LEVELS - 1)
    cells = (levels[:, 0] * COLOR_LEVELS + levels[:, 1]) * COLOR_LEVELS + levels[:, 2]
    share = F.one_hot(cells.flatten(1), COLOR_LEVELS**3).float().mean(1)
    return -(share * share.clamp_min(1e-12).log()).sum(1)


def seed_distance(images: Tensor) -> Tensor:
    """Mean absolute difference between a prompt's images, of 1: falls to 0 when noise is ignored.   images: [P, S, 3,
    H, W], S >= 2.

    Returns: [P].   Raises: ValueError with fewer than two seeds."""
    seeds = images.shape[1]
    if seeds < 2:
        raise ValueError(f"distances between seeds need two images of a prompt, got {seeds}")
    pairs = [(i, j) for i in range(seeds) for j in range(i)]
    return torch.stack([(images[:, i] - images[:, j]).float().abs().mean((1, 2, 3)) for i, j in pairs]).mean(0)
