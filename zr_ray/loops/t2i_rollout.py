"""One step's images and their scores: every chunk is scored while the next one is sampled, and the last ones while the
caller does what needs no scores.

Noise depends on (run seed, step, prompt's place in the step, member of the group) alone, so neither the number of ranks
nor a resume changes an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zr_ray.config.t2i_reward import RewardSection
from zr_ray.functional.flow import stratified_sigmas
from zr_ray.functional.group_advantages import Normalization, advantages, image_rewards
from zr_ray.models.generators.adapter import Conditions, Noise, Trajectory
from zr_ray.workers.generator import GeneratorWorker, generator_of
from zr_ray.workers.reward_source import RewardSource, Scored, hash_number, join_scored

NOISE, STEP_NOISE, PROBES, CHOICE = 0x7A1, 0x7A2, 0x7A3, 0x7A4
"""Streams of random numbers of a step."""
ASKED_AGAIN = 2
"""Times that a step's images are sent again when a service changes its judge under them: an update takes seconds."""
SHIFT = 3.0
"""Of the noise levels that are trained on: more of them high, as in the schedules of the families (Z-Image and SD3:
3)."""


@dataclass(frozen=True)
class StepPrompts:
    """This rank's share of a step."""

    prompts: tuple[str, ...]
    places: tuple[int, ...]
    """Of these prompts among all of the step."""
    seed: tuple[int, int]
    """(run seed, step)."""
    group: int
    """Images of a prompt."""
    total: int
    """Prompts of the step, all ranks together."""

    @property
    def items(self) -> list[str]:
        """A prompt for every image, group after group."""
        return [prompt for prompt in self.prompts for _ in range(self.group)]

    def image_seeds(self, stream: int, *more: int, same: bool = False) -> list[tuple[int, ...]]:
        """A seed for every image; same: that of a group's first for all of it."""
        members = [0 if same else member for member in range(self.group)]
        return [(*self.seed, stream, place, member, *more) for place in self.places for member in members]


@dataclass(frozen=True)
class SampledImages:
    """A step's images on this rank, B = prompts x group."""

    conditions: Conditions
    states: tuple[Tensor, ...]
    """N + 1 latents [B, ...]; the last are clean."""
    velocities: tuple[Tensor, ...]

    @property
    def clean(self) -> Tensor:
        return self.states[-1]


@dataclass(frozen=True)
class ScoredImages(SampledImages):
    """With their scores."""

    scored: Scored


@dataclass(frozen=True)
class SentImages(SampledImages):
    """Under way to the reward."""

    answers: Callable[[], Scored]

    def wait(self) -> ScoredImages:
        """With the scores, as soon as they are there."""
        return ScoredImages(self.conditions, self.states, self.velocities, self.answers())


Phase = Callable[[str], AbstractContextManager[None]]
"""`with timer("sample"): ...` adds the block's seconds to that phase of the step; a journal's, for example."""
Look = Callable[[Trajectory], Tensor]
"""From a chunk's trajectory to the latents whose image is scored."""


def sent_rollout(
    worker: GeneratorWorker, rewards: RewardSource, batch: StepPrompts, timer: Phase, *, gradient: bool = False,
    noise: Noise | None = None, sigmas: Tensor | None = None, look: Look = lambda made: made.clean,
    same_noise: bool = False,
) -> SentImages:  # fmt: skip
    """Sample the step's images in chunks of a micro-batch, decode and send them to the reward. sigmas: an earlier end
    than the schedule's. same_noise: a group starts from one."""
    conditions, items = worker.encode(batch.items), batch.items
    seeds, size = batch.image_seeds(NOISE, same=same_noise), worker.options.micro_batch
    made, waiting = [], []
    for start in range(0, len(items), size):
        part = slice(start, start + size)
        with timer("sample"):
            rows = conditions.rows(range(*part.indices(len(items))))
            draw = _step_noise(worker, batch, part) if noise else None
            trajectory = worker.sample(rows, worker.noise(seeds[part]), stochastic=noise, draw=draw, sigmas=sigmas)
            images = worker.decode(look(trajectory))
        with timer("reward"):  # waits only while too many calls are under way
            waiting.append(rewards.submit(images, items[part], gradient))
        made.append(trajectory)

    def answers() -> Scored:
        with timer("reward"):
            scored = join_scored([future.result() for future in waiting])
        return of_one_version(scored, again)

    def again() -> Scored:
        with timer("reward"):
            asked = [
                rewards.submit(worker.decode(look(made[n])), items[start : start + size], gradient)
                for n, start in enumerate(range(0, len(items), size))
            ]
            return join_scored([future.result() for future in asked])

    states = tuple(torch.cat(column) for column in zip(*[t.states for t in made], strict=True))
    velocities = tuple(torch.cat(column) for column in zip(*[t.velocities for t in made], strict=True))
    return SentImages(conditions, states, velocities, answers)


def of_one_version(scored: Scored, again: Callable[[], Scored]) -> Scored:
    """Answers of one version of the judge alone: images of a group are compared with one another, and two versions
    are two scales. A rank holds whole groups, so it can see to that by itself.

    again: asks about the same images once more; what is mixed even then is kept where the version is that answered
    most, and counts as not scored elsewhere."""
    for _ in range(ASKED_AGAIN):
        if len(set(scored.numbers) - {-1}) < 2:
            return scored
        scored = again()
    counts = Counter(number for number in scored.numbers if number >= 0)
    if len(counts) < 2:
        return scored
    ((kept, _),) = counts.most_common(1)
    other = [number not in (kept, -1) for number in scored.numbers]
    reason = f"another version of the judge answered than the one that answered most images of the step (v{kept})"
    out = torch.tensor(other)
    columns = {
        name: torch.where(out[:, None], torch.nan, getattr(scored, name))
        for name in ("mu", "sigma", "parsed", "entropy")
    }
    if scored.reward is not None:
        columns["reward"] = torch.where(out, torch.nan, scored.reward)
    for name in ("gradients", "each"):
        if (slopes := getattr(scored, name)) is not None:
            columns[name] = torch.where(out.view(-1, *[1] * (slopes.ndim - 1)), torch.zeros_like(slopes), slopes)
    reasons = tuple(reason if left else said for left, said in zip(other, scored.reasons, strict=True))
    numbers = tuple(-1 if left else number for left, number in zip(other, scored.numbers, strict=True))
    return replace(scored, reasons=reasons, numbers=numbers, **columns)


def _step_noise(worker: GeneratorWorker, batch: StepPrompts, part: slice) -> Callable[[int], Tensor]:
    return lambda step: worker.noise(batch.image_seeds(STEP_NOISE, step)[part])


def group_rewards(scored: Scored, weights: Tensor, config: RewardSection, group: int) -> Tensor:
    """[P, G] rewards by the named aggregation, or [P, G, D] weighted scores for "gdpo"."""
    mu = scored.parsed if config.aggregation == "parsed" else scored.mu
    if config.aggregation == "gdpo":
        return (weights * (mu - config.risk * scored.sigma)).view(-1, group, len(weights))
    worst = config.aggregation == "worst"
    return image_rewards(mu, scored.sigma, weights, "worst" if worst else "sum", config.risk).view(-1, group)


def group_advantages(rewards: Tensor, aggregation: str, normalization: Normalization) -> tuple[Tensor, Tensor]:
    """Advantages [B] and which count [B], by name."""
    values, valid = advantages(rewards, "gdpo" if aggregation == "gdpo" else normalization)
    return values.flatten(), valid.flatten()


def reward_metrics(scored: Scored, weights: Tensor, rewards: Tensor | None, valid: Tensor | None) -> dict[str, float]:
    """Sums over this rank's images; divided by `reward/scored` of all ranks they are means. rewards: [P, G] for the
    spread in groups."""
    ok = torch.tensor([not reason for reason in scored.reasons])
    sums = {"reward/scored": float(ok.sum()), "reward/failed": float((~ok).sum())}
    for source, count in scored.failed_by.items():
        sums[f"reward/failed/{source}"] = float(count)
    for d, name in enumerate(scored.names):
        sums[f"reward/{name}"] = float(scored.mu[ok, d].sum())
    sums["reward/total"] = float((scored.mu[ok] @ weights).sum())
    sums["reward/entropy"] = float(scored.entropy[ok].mean(-1).sum()) if ok.any() else 0.0
    sums["reward/version"] = float(sum(number for number in scored.numbers if number >= 0))
    hashes = [
        hash_number(version) for version, reason in zip(scored.versions, scored.reasons, strict=True) if not reason
    ]
    sums["reward/judge_hash"] = float(sum(hashes))
    if rewards is not None and rewards.ndim == 2:
        spread = torch.stack(
            [row[row.isfinite()].std(correction=0) if row.isfinite().any() else row.new_zeros(()) for row in rewards]
        )
        sums["reward/group_std"] = float(spread.sum()) * rewards.shape[1]
        sums["reward/flat_groups"] = float((spread < 1e-6).sum()) * rewards.shape[1]
    if valid is not None:
        sums["reward/dropped"] = float((~valid).sum())
    return sums


def step_sigmas(batch: StepPrompts, draws: int, high: float = 1.0) -> Tensor:
    """[draws * B] noise levels of this rank's images, draw after draw, stratified over the step's images of all ranks:
    how many ranks share them changes no level. high: upper end of the range."""
    levels = stratified_sigmas(
        draws * batch.total * batch.group, SHIFT, generator_of(*batch.seed, PROBES, 0), high=high
    )
    return levels.view(draws, batch.total, batch.group)[:, list(batch.places)].flatten()
