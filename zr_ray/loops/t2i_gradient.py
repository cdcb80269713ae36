"""The gradient family: FlowBP, ReFL, DRaFT-K and DRaFT-LV. The service returns dR/dimage, the decoder turns it into
dR/dx_0, and chosen steps carry it to the weights.

    flowbp      reward at the true final image; K steps spread over the candidates, each with its Euler (or Lagrange)
    weight
    refl        reward at the estimate x0_hat of one random candidate step, gradient through that step
    draft       reward at the true final image; gradient through the chain of the last K candidate steps
    draft_lv    reward at x0_hat after noising the final image anew to the last candidate's level, a mean over draws

Candidates start at `t2i.reward_sigma_min` or above; with 0 they are the published algorithms. What lies below a
candidate's end passes straight through (dx_0/dx = 1), as in FlowBP.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zr_ray.config.t2i import T2iConfig
from zr_ray.functional.flow import clean_estimate, noised, ode_step
from zr_ray.functional.reward_gradient import (
    balanced_sum,
    candidate_steps,
    clip_to_median,
    hinge_weights,
    spread_steps,
    surrogate_weights,
)
from zr_ray.loops.t2i_probes import anchor_probes, joined_probes
from zr_ray.loops.t2i_rollout import (
    CHOICE,
    STEP_NOISE,
    Phase,
    ScoredImages,
    StepPrompts,
    reward_metrics,
    scored_rollout,
)
from zr_ray.loops.t2i_update import step_metrics
from zr_ray.workers.generator import GeneratorWorker, Probes, generator_of
from zr_ray.workers.reward_source import RewardSource, Scored


@dataclass(frozen=True)
class Surrogate:
    """What carries the gradient: sum over probes of weight <g of its image, velocity>."""

    probes: Probes
    rows: Tensor
    """[M] image of each probe."""
    weights: Tensor
    """[M] dx_0/dv."""
    gradients: Tensor
    """[B or M, ...] dR/dx_0, clipped; indexed by `rows`."""
    metrics: dict[str, float]


class RewardGradient:
    """One rank's algorithm."""

    def __init__(self, config: T2iConfig, worker: GeneratorWorker, rewards: RewardSource, timer: Phase) -> None:
        self.config, self.worker, self.rewards, self.timer = config, worker, rewards, timer
        self.candidates = candidate_steps(worker.sigmas, config.t2i.reward_sigma_min)
        self._build = {"flowbp": self._flowbp, "refl": self._refl, "draft": self._draft, "draft_lv": self._draft_lv}[
            config.t2i.algorithm
        ]

    def step(self, batch: StepPrompts, lr: float) -> dict[str, float]:
        """One step; returns metrics, means over all ranks."""
        c, worker = self.config.t2i, self.worker
        made, surrogate = self._build(batch)
        with self.timer("train"):
            probes = joined_probes(surrogate.probes, anchor_probes(worker, made, batch, c))
            images = len(made.clean) * worker.world
            sums = worker.accumulate(probes, _linear_losses(surrogate), c.anchor, c.reward_sigma_min, images)
            for name, value in surrogate.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            return step_metrics(
                worker, sums | reward_metrics(made.scored, self.rewards.weights, None, None), images, lr
            )

    # ---- the algorithms ----

    def _flowbp(self, batch: StepPrompts) -> tuple[ScoredImages, Surrogate]:
        made = scored_rollout(self.worker, self.rewards, batch, self.timer, gradient=True)
        gradients, metrics = self._latent_gradients(made.clean, made.scored, batch)
        c, sigmas = self.config.t2i.gradient, self.worker.sigmas
        chosen = spread_steps(self.candidates, c.steps_with_gradient, generator_of(*batch.seed, CHOICE))
        weights = surrogate_weights(sigmas, self.candidates, chosen, c.rule)
        count = len(made.clean)
        rows = torch.arange(count).repeat(len(chosen))
        probes = Probes(
            torch.cat([made.states[k] for k in chosen]),
            sigmas[chosen].repeat_interleave(count),
            made.conditions.rows(rows),
        )
        return made, Surrogate(probes, rows, weights.repeat_interleave(count), gradients, metrics)

    def _refl(self, batch: StepPrompts) -> tuple[ScoredImages, Surrogate]:
        sigmas = self.worker.sigmas
        (step,) = spread_steps(self.candidates, 1, generator_of(*batch.seed, CHOICE))
        level = sigmas[step]

        def estimate(trajectory) -> Tensor:
            x, v = trajectory.states[step], trajectory.velocities[step]
            return clean_estimate(x, v, level.expand(len(x)))

        made = scored_rollout(
            self.worker, self.rewards, batch, self.timer, gradient=True, sigmas=sigmas[: step + 2], look=estimate
        )
        start, count = made.states[step], len(made.clean)
        seen = clean_estimate(start, made.velocities[step], level.expand(count))
        gradients, metrics = self._latent_gradients(seen, made.scored, batch)
        probes = Probes(start, level.expand(count), made.conditions)
        # anchor probes are noised anew from the best estimate there is of the clean image
        made = ScoredImages(made.conditions, (*made.states[:-1], seen), made.velocities, made.scored)
        return made, Surrogate(probes, torch.arange(count), -level.expand(count), gradients, metrics)

    def _draft(self, batch: StepPrompts) -> tuple[ScoredImages, Surrogate]:
        """The chain is run backward here, by hand: each step's velocity is a probe, and dR/dx passes on through its
        Jacobian."""
        made = scored_rollout(self.worker, self.rewards, batch, self.timer, gradient=True)
        gradients, metrics = self._latent_gradients(made.clean, made.scored, batch)
        steps = self.candidates[-self.config.t2i.gradient.steps_with_gradient :]
        sigmas, count = self.worker.sigmas, len(made.clean)
        with self.timer("train"):
            passed = [gradients]
            for k in reversed(steps[1:]):
                passed.insert(0, self._through_step(made, k, passed[0]))
        rows = torch.arange(count).repeat(len(steps))
        probes = Probes(
            torch.cat([made.states[k] for k in steps]),
            sigmas[steps].repeat_interleave(count),
            made.conditions.rows(rows),
        )
        lengths = (sigmas[[k + 1 for k in steps]] - sigmas[steps]).repeat_interleave(count)
        return made, Surrogate(probes, torch.arange(len(rows)), lengths, torch.cat(passed), metrics)

    def _draft_lv(self, batch: StepPrompts) -> tuple[ScoredImages, Surrogate]:
        worker, draws = self.worker, self.config.t2i.gradient.inner_draws
        made = scored_rollout(worker, self.rewards, batch, self.timer)
        level, count = worker.sigmas[self.candidates[-1]], len(made.clean)
        rows = torch.arange(count).repeat(draws)
        noise = torch.cat([worker.noise(batch.image_seeds(STEP_NOISE, draw)) for draw in range(draws)])
        probes = Probes(
            noised(made.clean[rows], noise, level.expand(len(rows))),
            level.expand(len(rows)),
            made.conditions.rows(rows),
        )
        with self.timer("sample"):
            seen = clean_estimate(probes.latents, worker.velocities(probes), probes.sigmas)
        scored = self._score(seen, [batch.items[i] for i in rows.tolist()])
        gradients, metrics = self._latent_gradients(seen, scored, batch, rows)
        return made, Surrogate(probes, torch.arange(len(rows)), -probes.sigmas / draws, gradients, metrics)

    # ---- gradients ----

    def _latent_gradients(
        self, latents: Tensor, scored: Scored, batch: StepPrompts, rows: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """dR/dx_0 [B, ...] at `latents`, with the hinge, optionally at a perturbed image, each at most the batch's
        median."""
        c, (at, metrics) = self.config.t2i.gradient, self._image_gradients(scored)
        if c.perturb:
            items = batch.items if rows is None else [batch.items[i] for i in rows.tolist()]
            unit = at / at.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            at, _ = self._image_gradients(self._score(latents, items, away=c.perturb * unit))
        at = at * hinge_weights(scored.reward, self.config.reward.threshold).view(-1, 1, 1, 1).nan_to_num(0.0).float()
        size, worker = self.worker.options.micro_batch, self.worker
        with self.timer("train"):
            parts = [
                worker.image_gradient_to_latents(x, g) for x, g in zip(latents.split(size), at.split(size), strict=True)
            ]
        gradients = torch.cat(parts)
        if c.clip_to_median:
            norms = worker.gathered(gradients.flatten(1).norm(dim=1))
            gradients, clipped = clip_to_median(gradients, c.clip_to_median, norms)
            metrics = metrics | clipped
        return gradients, {name: value * len(batch.items) for name, value in metrics.items()}

    def _image_gradients(self, scored: Scored) -> tuple[Tensor, dict[str, float]]:
        """dR/dimage [B, 3, H, W], its scores balanced over the images of all ranks if `reward.balance` asks for it."""
        if scored.each is None:
            return scored.gradients, {}
        norms = self.worker.gathered(scored.each.flatten(2).norm(dim=2))
        return balanced_sum(scored.each, self.rewards.weights, norms)

    def _score(self, latents: Tensor, items: list[str], away: Tensor | None = None) -> Scored:
        """Reward and gradient at decoded latents, moved by -away."""
        from zr_ray.workers.reward_source import join_scored

        size, waiting = self.worker.options.micro_batch, []
        for start in range(0, len(items), size):
            part = slice(start, start + size)
            images = self.worker.decode(latents[part])
            if away is not None:
                images = (images - away[part].to(images)).clamp(0, 1)
            waiting.append(self.rewards.submit(images, items[part], gradient=True))
        with self.timer("reward"):
            return join_scored([future.result() for future in waiting])

    def _through_step(self, made: ScoredImages, step: int, gradient: Tensor) -> Tensor:
        """dR/dx before an ODE step from dR/dx' after it."""
        worker, sigmas, size, parts = self.worker, self.worker.sigmas, self.worker.options.micro_batch, []
        for index in torch.arange(len(gradient)).split(size):
            leaf = made.states[step][index].detach().requires_grad_()
            now, then = (sigmas[k].expand(len(index)) for k in (step, step + 1))
            velocity = worker.adapter.velocity(leaf, now.to(leaf.device), made.conditions.rows(index))
            after = ode_step(leaf, velocity, now, then)
            (before,) = torch.autograd.grad(after, leaf, gradient[index])
            parts.append(before)
        return torch.cat(parts)


def _linear_losses(surrogate: Surrogate):
    """-weight <g, v> of the surrogate's probes: its gradient is that of -R; 0 for the anchor's probes behind them."""
    count = len(surrogate.probes)

    def losses(velocity: Tensor, reference: Tensor, index: Tensor) -> tuple[Tensor, dict[str, float]]:
        acts = index[index < count]
        use = velocity[: len(acts)]
        slopes = surrogate.gradients[surrogate.rows[acts]].to(use) * surrogate.weights[acts].to(use).view(
            -1, *[1] * (use.ndim - 1)
        )
        value = -(use * slopes).flatten(1).sum(1)
        return torch.cat([value, velocity[len(acts) :].flatten(1).sum(1) * 0]), {}

    return losses
