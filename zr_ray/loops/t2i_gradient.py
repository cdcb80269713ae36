"""The gradient family: FlowBP, ReFL, DRaFT-K and DRaFT-LV. The service returns dR/dimage, the decoder turns it into
dR/dx_0, and chosen steps carry it to the weights.

    flowbp      reward at the true final image; K steps spread over the candidates, each with its Euler (or Lagrange)
    weight
    refl        reward at the estimate x0_hat of one random candidate step, gradient through that step
    draft       reward at the true final image; gradient through the chain of the last K candidate steps
    draft_lv    reward at x0_hat after noising the final image anew to the last candidate's level, a mean over draws

Candidates start at `t2i.reward_sigma_min` or above; with 0 they are the published algorithms. What lies below a
candidate's end passes straight through (dx_0/dx = 1), as in FlowBP.

Where probes are, and what the reference does there, depends on no score: that is computed while the service computes
the gradient, and only the policy's forward and backward wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    SampledImages,
    ScoredImages,
    StepPrompts,
    reward_metrics,
    sent_rollout,
)
from zr_ray.loops.t2i_update import step_metrics
from zr_ray.workers.generator import GeneratorWorker, Probes, generator_of
from zr_ray.workers.reward_source import RewardSource, Scored, join_scored


@dataclass(frozen=True)
class Prepared:
    """What of an update needs no score."""

    probes: Probes
    """M that carry the gradient; behind them those of the anchor alone."""
    acting: int
    """M."""
    reference: Tensor
    """Velocity of the reference at each."""


@dataclass(frozen=True)
class Surrogate:
    """What carries the gradient: sum over probes of weight <g of its image, velocity>."""

    prepared: Prepared
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
            losses, ready = _linear_losses(surrogate), surrogate.prepared
            images = len(made.clean) * worker.world
            sums = worker.accumulate(ready.probes, losses, c.anchor, c.reward_sigma_min, images, ready.reference)
            for name, value in surrogate.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            return step_metrics(
                worker, sums | reward_metrics(made.scored, self.rewards.weights, None, None), images, lr
            )

    def _prepared(self, acting: Probes, made: SampledImages, batch: StepPrompts) -> Prepared:
        """To be called between sending images and waiting for their scores."""
        with self.timer("train"):
            probes = joined_probes(acting, anchor_probes(self.worker, made, batch, self.config.t2i))
            return Prepared(probes, len(acting), self.worker.reference_velocities(probes))

    # ---- the algorithms ----

    def _flowbp(self, batch: StepPrompts) -> tuple[ScoredImages, Surrogate]:
        sent = sent_rollout(self.worker, self.rewards, batch, self.timer, gradient=True)
        c, sigmas = self.config.t2i.gradient, self.worker.sigmas
        chosen = spread_steps(self.candidates, c.steps_with_gradient, generator_of(*batch.seed, CHOICE))
        weights = surrogate_weights(sigmas, self.candidates, chosen, c.rule)
        rows, acting = self._at_steps(sent, chosen)
        prepared = self._prepared(acting, sent, batch)
        made = sent.wait()
        gradients, metrics = self._latent_gradients(made.clean, made.scored, batch)
        return made, Surrogate(prepared, rows, weights.repeat_interleave(len(made.clean)), gradients, metrics)

    def _refl(self, batch: StepPrompts) -> tuple[ScoredImages, Surrogate]:
        sigmas = self.worker.sigmas
        (step,) = spread_steps(self.candidates, 1, generator_of(*batch.seed, CHOICE))
        level = sigmas[step]

        def estimate(trajectory) -> Tensor:
            x, v = trajectory.states[step], trajectory.velocities[step]
            return clean_estimate(x, v, level.expand(len(x)))

        sent = sent_rollout(
            self.worker, self.rewards, batch, self.timer, gradient=True, sigmas=sigmas[: step + 2], look=estimate
        )
        start, levels = sent.states[step], level.expand(len(sent.clean))
        seen = clean_estimate(start, sent.velocities[step], levels)
        # anchor probes are noised anew from the best estimate there is of the clean image
        sent = replace(sent, states=(*sent.states[:-1], seen))
        prepared = self._prepared(Probes(start, levels, sent.conditions), sent, batch)
        made = sent.wait()
        gradients, metrics = self._latent_gradients(seen, made.scored, batch)
        return made, Surrogate(prepared, torch.arange(len(seen)), -levels, gradients, metrics)

    def _draft(self, batch: StepPrompts) -> tuple[ScoredImages, Surrogate]:
        """The chain is run backward here, by hand: each step's velocity is a probe, and dR/dx passes on through its
        Jacobian."""
        sent = sent_rollout(self.worker, self.rewards, batch, self.timer, gradient=True)
        steps = self.candidates[-self.config.t2i.gradient.steps_with_gradient :]
        rows, acting = self._at_steps(sent, steps)
        prepared = self._prepared(acting, sent, batch)
        made = sent.wait()
        gradients, metrics = self._latent_gradients(made.clean, made.scored, batch)
        sigmas, count = self.worker.sigmas, len(made.clean)
        with self.timer("train"):
            passed = [gradients]
            for k in reversed(steps[1:]):
                passed.insert(0, self._through_step(made, k, passed[0]))
        lengths = (sigmas[[k + 1 for k in steps]] - sigmas[steps]).repeat_interleave(count)
        return made, Surrogate(prepared, torch.arange(len(rows)), lengths, torch.cat(passed), metrics)

    def _draft_lv(self, batch: StepPrompts) -> tuple[ScoredImages, Surrogate]:
        worker, draws = self.worker, self.config.t2i.gradient.inner_draws
        sent = sent_rollout(worker, self.rewards, batch, self.timer)
        level, count = worker.sigmas[self.candidates[-1]], len(sent.clean)
        rows = torch.arange(count).repeat(draws)
        noise = torch.cat([worker.noise(batch.image_seeds(STEP_NOISE, draw)) for draw in range(draws)])
        probes = Probes(
            noised(sent.clean[rows], noise, level.expand(len(rows))),
            level.expand(len(rows)),
            sent.conditions.rows(rows),
        )
        with self.timer("sample"):
            seen = clean_estimate(probes.latents, worker.velocities(probes), probes.sigmas)
        answers = self._sent(seen, [batch.items[i] for i in rows.tolist()])
        prepared = self._prepared(probes, sent, batch)
        gradients, metrics = self._latent_gradients(seen, answers(), batch, rows)
        return sent.wait(), Surrogate(prepared, torch.arange(len(rows)), -probes.sigmas / draws, gradients, metrics)

    def _at_steps(self, made: SampledImages, steps: list[int]) -> tuple[Tensor, Probes]:
        """Each image at each of these steps of the sampler, step after step: whose image, and the probes."""
        count = len(made.clean)
        rows = torch.arange(count).repeat(len(steps))
        states = torch.cat([made.states[k] for k in steps])
        sigmas = self.worker.sigmas[steps].repeat_interleave(count)
        return rows, Probes(states, sigmas, made.conditions.rows(rows))

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
            at, _ = self._image_gradients(self._sent(latents, items, away=c.perturb * unit)())
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

    def _sent(self, latents: Tensor, items: list[str], away: Tensor | None = None) -> Callable[[], Scored]:
        """Ask for reward and gradient at decoded latents, moved by -away. Returns: what waits for the answer."""
        size, waiting = self.worker.options.micro_batch, []
        for start in range(0, len(items), size):
            part = slice(start, start + size)
            images = self.worker.decode(latents[part])
            if away is not None:
                images = (images - away[part].to(images)).clamp(0, 1)
            waiting.append(self.rewards.submit(images, items[part], gradient=True))

        def answers() -> Scored:
            with self.timer("reward"):
                return join_scored([future.result() for future in waiting])

        return answers

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
    count = surrogate.prepared.acting

    def losses(velocity: Tensor, reference: Tensor, index: Tensor) -> tuple[Tensor, dict[str, float]]:
        acts = index[index < count]
        use = velocity[: len(acts)]
        slopes = surrogate.gradients[surrogate.rows[acts]].to(use) * surrogate.weights[acts].to(use).view(
            -1, *[1] * (use.ndim - 1)
        )
        value = -(use * slopes).flatten(1).sum(1)
        return torch.cat([value, velocity[len(acts) :].flatten(1).sum(1) * 0]), {}

    return losses
