"""Samples images with the weights of a text-to-image run's checkpoint, as the run itself shows them: the ODE sampler at
the run's own steps and guidance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zr_ray.config.t2i import ActorSection, GeneratorSection

MADE = 0x3A6E
"""Stream of the noise; other numbers than those of training and of held-out looks."""


class ImageMaker:
    """Owns one generator. Verbs: make, describe."""

    def __init__(self, folder: Path, generator: GeneratorSection, actor: ActorSection, checkpoint: Path) -> None:
        """folder: where the run started. checkpoint: of the run; the averaged weights, or those of its best look where
        the hacking watch keeps some, are what it would hand out."""
        from zr_ray.workers.generator import GeneratorWorker

        self.worker = GeneratorWorker(folder, generator, actor)
        state = self.worker.load(checkpoint)
        stopped = bool(state.get("watch", {}).get("stopped"))
        self.weights = "best" if stopped and "best" in self.worker.weights.sets else "average"

    def describe(self) -> str:
        """Name of the set of weights it samples with."""
        return self.weights

    def make(self, prompts: Sequence[str], seeds: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[N, H, W, 3] uint8; each image depends on its prompt and its own seed alone, whoever makes it."""
        from zr_ray.workers.user_function import to_bytes

        worker, made = self.worker, []
        size = worker.options.micro_batch
        with worker.weights.use(self.weights):
            for start in range(0, len(prompts), size):
                noise = worker.noise([(MADE, *seed) for seed in seeds[start : start + size]])
                sampled = worker.sample(worker.encode(prompts[start : start + size]), noise)
                made.append(to_bytes(worker.decode(sampled.clean)).movedim(1, -1).cpu().numpy())
        return np.concatenate(made)
