"""The reward in the actor's own process: what a training without a service does, to measure and test the served one
against.

Left out on purpose: batching across actors, replicas, updates while training goes on; that is what the service is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zr_ray.config.t2i_reward import RewardSection
from zr_ray.functional.aggregation import aggregate_reward, score_deviation
from zr_ray.functional.group_advantages import parsed_scores
from zr_ray.functional.scores import score_entropy
from zr_ray.models.student import Student
from zr_ray.workers.reward_source import RewardSource, Scored
from zr_ray.workers.user_function import to_bytes


class LocalJudge(RewardSource):
    """One student; calls run one after the other."""

    def __init__(self, config: RewardSection, folder: Path) -> None:
        super().__init__(config.model_copy(update={"in_flight": 1}))
        self._student = Student(folder)

    def _each(self, log_q: Tensor, leaf: Tensor) -> Tensor:
        """[B, D, 3, H, W] gradient of every score alone."""
        rows = []
        for alone in torch.eye(len(self.names)):
            value = aggregate_reward(log_q, self._student.bins, alone, self.config.risk).sum()
            rows.append(torch.autograd.grad(value, leaf, retain_graph=True)[0])
        return torch.stack(rows, 1)

    def answer(self, images: Tensor, prompts: Sequence[str], gradient: bool) -> Scored:
        leaf = (images.float() if gradient else to_bytes(images).float() / 255).requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            made, extra = self._student(leaf, list(prompts), self.names), {}
            if gradient and self.config.balance:
                extra["each"] = self._each(made.log_q, leaf)
            if gradient:
                reward = aggregate_reward(made.log_q, self._student.bins, self.weights, self.config.risk)
                extra = {"reward": reward.detach().double(), "gradients": torch.autograd.grad(reward.sum(), leaf)[0]}
        log_q = made.log_q.detach().double()
        return Scored(
            self.names,
            made.mu.detach().double(),
            score_deviation(log_q, self._student.bins),
            parsed_scores(log_q.exp(), self._student.bins),
            score_entropy(log_q),
            ("local",) * len(prompts),
            ("",) * len(prompts),
            **extra,
        )
