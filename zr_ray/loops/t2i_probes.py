"""Probes of the algorithms whose reward acts at steps of the sampler: beside them, probes at low noise for the anchor
alone."""

from __future__ import annotations

import torch

from zr_ray.config.t2i import T2iSection
from zr_ray.functional.flow import noised
from zr_ray.loops.t2i_rollout import PROBES, SampledImages, StepPrompts, step_sigmas
from zr_ray.models.generators.adapter import Conditions
from zr_ray.workers.generator import GeneratorWorker, Probes


def anchor_probes(worker: GeneratorWorker, made: SampledImages, batch: StepPrompts, c: T2iSection) -> Probes | None:
    """`anchor.draws` probes of every image below the cut, from fresh noise; None if there is no anchor, or nothing
    below the cut."""
    if not (c.anchor.enabled and c.anchor.draws and c.reward_sigma_min > 0):
        return None
    rows = torch.arange(len(made.clean)).repeat(c.anchor.draws)
    sigmas = step_sigmas(batch, c.anchor.draws, high=c.reward_sigma_min)
    noise = torch.cat([worker.noise(batch.image_seeds(PROBES, draw)) for draw in range(c.anchor.draws)])
    return Probes(noised(made.clean[rows], noise, sigmas), sigmas, made.conditions.rows(rows))


def joined_probes(acting: Probes, anchor: Probes | None) -> Probes:
    """The acting ones first."""
    if anchor is None:
        return acting
    return Probes(
        torch.cat([acting.latents, anchor.latents]),
        torch.cat([acting.sigmas, anchor.sigmas]),
        Conditions.joined([acting.conditions, anchor.conditions]),
    )
