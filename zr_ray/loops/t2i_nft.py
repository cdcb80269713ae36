"""DiffusionNFT: sample, score, compare inside groups, then train the forward process on the images themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from zr_ray.config.t2i import T2iConfig
from zr_ray.functional.flow import noised
from zr_ray.functional.nft import nft_loss, nft_targets, old_policy_decay
from zr_ray.loops.t2i_rollout import (
    PROBES,
    Phase,
    StepPrompts,
    group_advantages,
    group_rewards,
    reward_metrics,
    sent_rollout,
    step_sigmas,
)
from zr_ray.loops.t2i_update import step_metrics
from zr_ray.workers.generator import GeneratorWorker, Probes
from zr_ray.workers.reward_source import RewardSource


class Nft:
    """One rank's algorithm. The old policy samples; on policy it is the trained one."""

    def __init__(self, config: T2iConfig, worker: GeneratorWorker, rewards: RewardSource, timer: Phase) -> None:
        self.config, self.worker, self.rewards, self.timer = config, worker, rewards, timer
        self.on_policy = config.t2i.nft.old_policy == "on_policy"
        if not self.on_policy:
            worker.weights.follow("old", 1.0)

    def step(self, batch: StepPrompts, lr: float) -> dict[str, float]:
        """One step; returns metrics, means over all ranks."""
        c, worker = self.config.t2i, self.worker
        with worker.weights.use("trained" if self.on_policy else "old"):
            made = sent_rollout(worker, self.rewards, batch, self.timer).wait()
        rewards = group_rewards(made.scored, self.rewards.weights, self.config.reward, c.group_size)
        values, valid = group_advantages(rewards, self.config.reward.aggregation, c.advantage)
        with self.timer("train"):
            probes, rows = self._probes(made, batch)
            losses = self._losses(probes, made.clean[rows], nft_targets(values)[rows], valid[rows])
            images = len(rows) * worker.world
            sums = worker.accumulate(probes, losses, c.anchor, c.reward_sigma_min, images)
            metrics = step_metrics(
                worker, sums | reward_metrics(made.scored, self.rewards.weights, rewards, valid), images, lr
            )
        if not self.on_policy:
            worker.weights.follow("old", old_policy_decay(c.nft.old_policy, worker.weights.updates))
        return metrics

    def _probes(self, made, batch: StepPrompts) -> tuple[Probes, Tensor]:
        """`draws` probes of every image: fresh noise at levels that cover the whole range, and the image of each."""
        draws, count = self.config.t2i.nft.draws, len(made.clean)
        rows = torch.arange(count).repeat(draws)
        sigmas = step_sigmas(batch, draws)
        noise = torch.cat([self.worker.noise(batch.image_seeds(PROBES, draw)) for draw in range(draws)])
        return Probes(noised(made.clean[rows], noise, sigmas), sigmas, made.conditions.rows(rows)), rows

    def _losses(self, probes: Probes, clean: Tensor, targets: Tensor, valid: Tensor):
        c = self.config.t2i
        acts = valid & (probes.sigmas >= c.reward_sigma_min)
        old = None
        if not self.on_policy:
            with self.worker.weights.use("old"):
                old = self.worker.velocities(probes)

        def losses(velocity: Tensor, reference: Tensor, index: Tensor) -> tuple[Tensor, dict[str, float]]:
            before = velocity.detach() if old is None else old[index]
            use = acts[index].to(velocity.device)
            at = (probes.latents[index], clean[index], probes.sigmas[index], targets[index])
            x, x0, sigmas, r = (value.to(velocity.device) for value in at)
            loss = nft_loss(velocity, before, x, x0, sigmas, r, c.nft.mix)
            return torch.where(use, loss, torch.zeros_like(loss)), {}

        return losses
