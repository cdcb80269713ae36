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
from zr_ray.serving.scores import Scores
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
        if gradient and self.config.balance:
            return self._answer_each(images, prompts)
        if gradient:
            made = self._client.score_and_grad(images.float(), prompts, self.weights, self.config.risk)
            slopes = torch.stack([g.float() for g in made.gradients]).nan_to_num(0.0)
            extra = {"reward": made.reward.double(), "gradients": slopes}
        else:
            made, extra = self._client.score(to_bytes(images), prompts), {}
        return self._scored(made, len(prompts), **extra)

    def _answer_each(self, images: Tensor, prompts: Sequence[str]) -> Scored:
        """Scores and the gradient of each weighted score: every image once per score, in one call."""
        weighted = [d for d, weight in enumerate(self.weights.tolist()) if weight] or [0]
        count, times = len(prompts), len(weighted)
        alone = torch.eye(len(self.names))[weighted].repeat_interleave(count, 0)
        asked = images.float().repeat(times, 1, 1, 1)
        made = self._client.score_and_grad(asked, [*prompts] * times, alone, self.config.risk)
        ok = made.ok.view(times, count).all(0)
        each = torch.zeros(count, len(self.names), *images.shape[1:])
        slopes = torch.stack([g.float() for g in made.gradients]).view(times, count, *images.shape[1:])
        each[:, weighted] = torch.where(ok.view(-1, 1, 1, 1), slopes, torch.zeros_like(slopes)).movedim(0, 1)
        parts, used = made.reward.double().view(times, count), self.weights[weighted]
        reward = torch.where(ok, (used[:, None] * parts).sum(0), torch.nan)
        total = torch.einsum("bdchw,d->bchw", each, self.weights.float())
        return self._scored(made, count, reward=reward, gradients=total, each=each)

    def _scored(self, made: Scores, count: int, **extra: Tensor) -> Scored:
        """The answer about `count` images; of an image that was asked about several times all must have come."""
        times = len(made.status) // count
        faults = ["" if s == "ok" else f"{s}: {r}" for s, r in zip(made.status, made.reason, strict=True)]
        reasons = tuple(
            next((faults[i + t * count] for t in range(times) if faults[i + t * count]), "") for i in range(count)
        )
        bad = torch.tensor([bool(reason) for reason in reasons])[:, None]
        # plain numbers have no bins, and are what they parse to
        bins = torch.tensor(made.bins, dtype=torch.float64)
        parsed = parsed_scores(made.q.double(), bins) if made.bins else made.mu.double()
        columns = {"mu": made.mu.double(), "sigma": made.sigma.double(), "parsed": parsed}
        columns["entropy"] = made.entropy.double()
        shown = {name: torch.where(bad, torch.nan, column[:count]) for name, column in columns.items()}
        return Scored(self.names, **shown, versions=made.model_hash[:count], reasons=reasons, **extra)

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
