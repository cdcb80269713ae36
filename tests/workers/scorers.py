"""Functions as a user writes them for `reward.sources`, importable by name from every process of a test."""

from __future__ import annotations

import numpy as np
import torch


def brightness(images: np.ndarray, prompts) -> dict[str, np.ndarray]:
    """[N, H, W, 3] uint8 -> its mean, in [0, 1]; not a number for a prompt that asks for nothing."""
    values = images.mean((1, 2, 3)) / 255
    return {"mean": np.where([prompt == "nothing" for prompt in prompts], np.nan, values)}


def first_unknown(images: np.ndarray, prompts) -> dict[str, np.ndarray]:
    """The mean of an image in [0, 1]; not a number for the first image of a batch."""
    values = images.mean((1, 2, 3)) / 255
    values[0] = np.nan
    return {"mean": values}


def squared_red(images: torch.Tensor, prompts) -> dict[str, torch.Tensor]:
    """[N, 3, H, W] float -> the mean square of the red channel, differentiable; fails for the prompt "broken"."""
    if "broken" in prompts:
        raise ZeroDivisionError("a scorer of a test")
    return {"red": images[:, 0].square().mean((1, 2)), "count": torch.arange(len(prompts))}


class Counted:
    """A scorer with a state: made once a replica."""

    made = 0

    def __init__(self) -> None:
        Counted.made += 1

    def __call__(self, images: np.ndarray, prompts) -> dict[str, list[float]]:
        return {"made": [float(Counted.made)] * len(prompts)}


def wrong_count(images, prompts):
    """Answers for one image only."""
    return {"mean": [1.0]}
