"""The reward service as the reward source of a diffusion actor.

Left out on purpose: retries and splitting, which are the client's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zr_ray.config.t2i_reward import RewardSection
from zr_ray.functional.group_advantages import parsed_scores
from zr_ray.serving.client import RewardClient
from zr_ray.workers.joint_reward import JointReward
from zr_ray.workers.reward_source import FunctionReward, RewardSource, Scored
from zr_ray.workers.user_function import to_bytes


class ServedReward(RewardSource):
    """The reward service, through a Ray Serve handle or HTTP (`serving/client.py`): its deadline, retries and bounds
    hold."""

    def __init__(self, config: RewardSection, target: str, judge: str = "student") -> None:
        """target: application name or URL. judge: name of the deployment in it."""
        super().__init__(config)
        self._client = RewardClient(
            target,
            judge=judge,
            dimensions=self.names,
            items_per_request=config.items_per_call,
            max_in_flight=config.in_flight,
            deadline_s=config.deadline_s,
        )

    def answer(self, images: Tensor, prompts: Sequence[str], gradient: bool) -> Scored:
        if gradient:
            made = self._client.score_and_grad(images.float(), prompts, self.weights, self.config.risk)
            slopes = torch.stack([g.float() for g in made.gradients]).nan_to_num(0.0)
            extra = {"reward": made.reward.double(), "gradients": slopes}
        else:
            made, extra = self._client.score(to_bytes(images), prompts), {}
        reasons = tuple("" if s == "ok" else f"{s}: {r}" for s, r in zip(made.status, made.reason, strict=True))
        # plain numbers have no bins, and are what they parse to
        bins = torch.tensor(made.bins, dtype=torch.float64)
        parsed = parsed_scores(made.q.double(), bins) if made.bins else made.mu.double()
        return Scored(
            self.names,
            made.mu.double(),
            made.sigma.double(),
            parsed,
            made.entropy.double(),
            made.model_hash,
            reasons,
            **extra,
        )

    def close(self) -> None:
        super().close()
        self._client.close()


def open_source(config: RewardSection, target: str | None) -> RewardSource:
    """The source that a configuration means. target: application or URL of the service, None for a function."""
    if target is None:
        return FunctionReward(config)
    if not config.sources:
        return ServedReward(config, target)
    alone = {
        source.name: config.model_copy(update={"sources": (), "weights": source.weights}) for source in config.sources
    }
    return JointReward(config, {name: ServedReward(part, target, name) for name, part in alone.items()})
