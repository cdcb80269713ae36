"""What a generator must pass before rewards may train it: figures from its images and the world's verifier.

Left out on purpose: learned measures (FID and the like); the verifier is the one judge here that no training can move.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zr_ray.world.verifier.reading import read_scene
from zr_ray.world.verifier.scores import alignment_score, objects_match, plausibility_score

GATE = {
    "object_match": (0.35, 0.80),
    "prompt_gap": (0.30, 1.0),
    "codec_cost": (-1.0, 0.03),
    "seed_distance": (2.0, 255.0),
    "image_ms": (0.0, 120.0),
}
"""Figure -> accepted range, both ends included. object_match below .80 leaves room for rewards; seed_distance in gray
levels."""


def read_images(images: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """The verifier on images [N, 64, 64, 3]: match, alignment and plausibility with the own prompt, and shuffled: match
    and alignment with the next prompt, a rotation of the list, as in a caption shuffle.   Returns: name -> [N]."""
    readings = [read_scene(image) for image in images]
    others = [*prompts[1:], *prompts[:1]]
    return {
        "match": np.array([objects_match(r, p) for r, p in zip(readings, prompts, strict=True)], float),
        "alignment": np.array([alignment_score(r, p) for r, p in zip(readings, prompts, strict=True)]),
        "plausibility": np.array([plausibility_score(r) for r in readings]),
        "shuffled_match": np.array([objects_match(r, p) for r, p in zip(readings, others, strict=True)], float),
        "shuffled_alignment": np.array([alignment_score(r, p) for r, p in zip(readings, others, strict=True)]),
    }


def mean_with_error(values: np.ndarray) -> tuple[float, float]:
    """(mean, standard error of the mean); the error of fewer than two values is 0."""
    values = np.asarray(values, float)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def seed_distance(images: np.ndarray) -> float:
    """Mean absolute pixel difference between images of the same prompt under different seeds, gray levels.

    images: [S, N, 64, 64, 3], S >= 2 seeds. 0 means that the noise is ignored."""
    images = images.astype(np.float32)
    seeds = len(images)
    return float(np.mean([np.abs(images[i] - images[j]).mean() for i in range(seeds) for j in range(i)]))


def passed(figures: dict[str, float]) -> dict[str, bool]:
    """Gate figure -> inside its range; an absent figure has not passed."""
    return {name: name in figures and low <= figures[name] <= high for name, (low, high) in GATE.items()}
