"""A judge in this process, without Ray: images [N, H, W, 3] uint8 and prompts in, score distributions out. Two ways,
one call: all dimensions in one forward, or after reasoning, on vLLM.

Left out on purpose: many machines; `jobs/evaluate.py` and `jobs/score.py` are for large sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from zr_ray.judging.label import teacher_distributions, teacher_requests
from zr_ray.models.student import Student
from zr_ray.rubric import Rubric

BATCH = 64
"""Images of one forward, or of one call of the engine."""


class Judge(Protocol):
    """What measures a judge needs to know of it."""

    rubric: Rubric

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Tensor:
        """[N, D, K] log of the score distributions, nats; nan in a dimension without a well-formed answer."""
        ...


class OneForward:
    """A judge that scores without reasoning."""

    def __init__(self, folder: Path) -> None:
        self._student = Student(folder)
        self.rubric = self._student.rubric

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(prompts), BATCH):
            pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH])).movedim(-1, 1).float() / 255
            parts.append(self._student(pixels, prompts[start : start + BATCH]).log_q)
        return torch.cat(parts)


class Reasoning:
    """A judge that reasons first: the mean distribution of sampled traces, seeded by image and prompt, so that neither
    order nor batches matter."""

    def __init__(self, folder: Path, traces: int, seed: int, say: Callable[[str], None] = lambda line: None) -> None:
        """traces: of every image and dimension, at least 1. say: told after every batch how far a call is."""
        from zr_ray.config.workers import RolloutSection
        from zr_ray.workers.rollout import RolloutWorker

        threads = torch.get_num_threads()
        self._engine = RolloutWorker(folder, RolloutSection(threads=threads, max_num_seqs=512))
        self.rubric, self._traces, self._seed, self._say = self._engine.text.rubric, traces, seed, say

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(prompts), BATCH):
            asked = [
                (hashlib.sha256(prompt.encode() + image.tobytes()).hexdigest(), prompt, image)
                for image, prompt in zip(images[start : start + BATCH], prompts[start : start + BATCH], strict=True)
            ]
            requests = teacher_requests(self._engine.text, asked, self._seed)
            groups = self._engine.generate(requests, self._traces, 1.0)
            parts.append(teacher_distributions(groups, self.rubric)[0])
            self._say(f"{start + len(asked)} of {len(prompts)} images reasoned about")
        return torch.cat(parts)
