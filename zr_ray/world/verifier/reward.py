"""The verifier as a reward function (`reward.function=zr_ray.world.verifier.reward:verifier_reward`): the ceiling of
what a judge can teach."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zr_ray.rubric import DIMENSIONS
from zr_ray.world.verifier.scores import verify


def verifier_reward(images: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Dimension -> [N] scores of pictures [N, 64, 64, 3] uint8 for prompts of the simulated world."""
    read = [verify(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    return {name: np.array([scores[name] for scores in read]) for name in DIMENSIONS}
