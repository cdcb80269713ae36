"""Flow-GRPO: stochastic steps in a window at high noise, compared inside groups, trained by the clipped ratio of their
densities."""

from __future__ import annotations

import torch
from torch import Tensor

from zr_ray.config.t2i import T2iConfig
from zr_ray.errors import ConfigError
from zr_ray.functional.flow import sde_step, step_log_density
from zr_ray.functional.flow_grpo import clipped_terms, guarded_log_ratio, step_kl
from zr_ray.functional.reward_gradient import candidate_steps
from zr_ray.loops.t2i_probes import anchor_probes, joined_probes
from zr_ray.loops.t2i_rollout import (
    CHOICE,
    Phase,
    StepPrompts,
    group_advantages,
    group_rewards,
    reward_metrics,
    sent_rollout,
)
from zr_ray.loops.t2i_update import step_metrics
from zr_ray.models.generators.adapter import Noise
from zr_ray.workers.generator import GeneratorWorker, Probes, generator_of
from zr_ray.workers.reward_source import RewardSource


class FlowGrpo:
    """One rank's algorithm."""

    def __init__(self, config: T2iConfig, worker: GeneratorWorker, rewards: RewardSource, timer: Phase) -> None:
        self.config, self.worker, self.rewards, self.timer = config, worker, rewards, timer
        sigmas = worker.sigmas
        # the last step has no noise left to compare densities by
        self.candidates = [k for k in candidate_steps(sigmas, config.t2i.reward_sigma_min) if sigmas[k + 1] > 0]
        if config.t2i.flow_grpo.window > len(self.candidates):
            raise ConfigError(
                f"t2i.flow_grpo.window may have {len(self.candidates)} steps (those that start at sigma"
                f" {config.t2i.reward_sigma_min} or above and do not end at 0), got {config.t2i.flow_grpo.window};"
                " lower it"
            )

    def step(self, batch: StepPrompts, lr: float) -> dict[str, float]:
        """One step of one or more updates on the same images; returns metrics of the last, means over all ranks."""
        c, worker = self.config.t2i, self.worker
        window = self._window(batch)
        noise = Noise(c.flow_grpo.sde, c.flow_grpo.strength, tuple(window))
        same = c.flow_grpo.same_noise
        made = sent_rollout(worker, self.rewards, batch, self.timer, noise=noise, same_noise=same).wait()
        rewards = group_rewards(made.scored, self.rewards.weights, self.config.reward, c.group_size)
        values, valid = group_advantages(rewards, self.config.reward.aggregation, c.advantage)
        scored = reward_metrics(made.scored, self.rewards.weights, rewards, valid)
        with self.timer("train"):
            count = len(made.clean)
            rows = torch.arange(count).repeat(len(window))
            steps = torch.tensor(window).repeat_interleave(count)
            acting = Probes(
                torch.cat([made.states[k] for k in window]), worker.sigmas[steps], made.conditions.rows(rows)
            )
            probes = joined_probes(acting, anchor_probes(worker, made, batch, c))
            losses = self._losses(made, window, values.float()[rows], valid[rows], worker.velocities(acting))
            for _ in range(c.flow_grpo.updates):
                sums = worker.accumulate(probes, losses, c.anchor, c.reward_sigma_min, len(probes) * worker.world)
                metrics = step_metrics(worker, sums | scored, len(probes) * worker.world, lr)
        return metrics

    def _window(self, batch: StepPrompts) -> list[int]:
        """Steps of this batch, the same for every rank: members of a group must differ by their noise alone."""
        size = self.config.t2i.flow_grpo.window
        first = torch.randint(len(self.candidates) - size + 1, (), generator=generator_of(*batch.seed, CHOICE))
        return self.candidates[int(first) : int(first) + size]

    def _losses(self, made, window: list[int], advantages: Tensor, valid: Tensor, old_velocities: Tensor):
        """Loss of a probe by its index: the first len(old_velocities) are stochastic steps, the rest feel the anchor
        alone."""
        c, sigmas, largest = self.config.t2i.flow_grpo, self.worker.sigmas, float(self.worker.sigmas[1])
        steps = torch.tensor(window).repeat_interleave(len(made.clean))
        before, reached = (torch.cat([made.states[k + shift] for k in window]) for shift in (0, 1))
        now, then = sigmas[steps], sigmas[steps + 1]
        old_mean, std = sde_step(before, old_velocities, now, then, c.sde, c.strength, largest)
        old_density = step_log_density(reached, old_mean, std)

        def losses(velocity: Tensor, reference: Tensor, index: Tensor) -> tuple[Tensor, dict[str, float]]:
            acts = index[index < len(steps)]
            if not len(acts):
                return velocity.flatten(1).sum(1) * 0, {}
            mean, _ = sde_step(before[acts], velocity[: len(acts)], now[acts], then[acts], c.sde, c.strength, largest)
            density = step_log_density(reached[acts], mean, std[acts])
            log_ratio = density - old_density[acts]
            if c.guard:
                log_ratio = guarded_log_ratio(density, old_density[acts], mean, old_mean[acts], std[acts])
            terms, metrics = clipped_terms(log_ratio, advantages[acts].to(mean.device), c.clip)
            if c.beta_kl:
                held, _ = sde_step(
                    before[acts], reference[: len(acts)], now[acts], then[acts], c.sde, c.strength, largest
                )
                terms = terms + c.beta_kl * step_kl(mean, held, std[acts])
            terms = torch.where(valid[acts].to(terms.device), terms, torch.zeros_like(terms))
            rest = velocity[len(acts) :].flatten(1).sum(1) * 0
            return torch.cat([terms, rest]), {name: value * len(acts) for name, value in metrics.items()}

        return losses
