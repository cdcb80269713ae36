"""Several reward sources beside each other: each is asked about every image, their scores are one D axis, their
gradients add up.

An image that a source could not score has no reward: it leaves the statistics of its group, and the source is named. A
source that scores nothing for many calls in a row ends the run, also by name.
Left out on purpose: putting scores to one number; that is the aggregation's (`functional/group_advantages.py`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from zr_ray.config.t2i_reward import OF_SOURCE, RewardSection
from zr_ray.errors import RewardError, ZrRayError
from zr_ray.workers.reward_source import RewardSource, Scored

SILENT_CALLS = 12
"""Calls in a row, of one actor, in which a source scored nothing, before the run is ended: two steps of 96 images."""


class JointReward(RewardSource):
    """All sources of a configuration."""

    def __init__(self, config: RewardSection, sources: Mapping[str, RewardSource]) -> None:
        """sources: name -> source, as `config.sources` names and orders them."""
        super().__init__(config)
        self._sources = dict(sources)
        self._silent: Counter[str] = Counter()
        self._lock = threading.Lock()

    def answer(self, images: Tensor, prompts: Sequence[str], gradient: bool) -> Scored:
        waiting = {name: source.submit(images, prompts, gradient) for name, source in self._sources.items()}
        return beside({name: self._part(name, future, images, gradient) for name, future in waiting.items()})

    def _part(self, name: str, future: Future, images: Tensor, gradient: bool) -> Scored:
        """What a source says, or that it said nothing. Raises RewardError if it has been silent for too long."""
        try:
            made = future.result()
        except ZrRayError as error:
            reason = f"{type(error).__name__}: {error}"
            made = unscored(self._sources[name].names, images, reason, gradient, self.config.balance)
        with self._lock:
            self._silent[name] = self._silent[name] + 1 if made.failed == len(images) else 0
            silent = self._silent[name]
        if silent >= SILENT_CALLS:
            raise RewardError(
                f"reward source {name} must score images, it scored none in {silent} calls in a row:"
                f" {made.reasons[0]}; correct it, or leave it out"
            )
        return made

    def close(self) -> None:
        """End the threads of all sources."""
        super().close()
        for source in self._sources.values():
            source.close()


def beside(parts: Mapping[str, Scored]) -> Scored:
    """Answers of several sources about the same images as one: names `<source>.<score>`, rewards and gradients summed.
    An image that one of them did not score has no gradient and a reward of nan."""
    made = list(parts.values())
    names = tuple(f"{source}{OF_SOURCE}{score}" for source, part in parts.items() for score in part.names)
    columns = {name: torch.cat([getattr(p, name) for p in made], -1) for name in ("mu", "sigma", "parsed", "entropy")}
    faults = [[f"{s}: {p.reasons[i]}" for s, p in parts.items() if p.reasons[i]] for i in range(len(columns["mu"]))]
    scored = torch.tensor([not fault for fault in faults])
    if all(part.gradients is not None for part in made):
        total = torch.stack([part.gradients for part in made]).sum(0)
        columns["gradients"] = torch.where(scored.view(-1, 1, 1, 1), total, torch.zeros_like(total))
        reward = torch.stack([part.reward for part in made]).sum(0)
        columns["reward"] = torch.where(scored, reward, torch.full_like(reward, torch.nan))
    if all(part.each is not None for part in made):
        every = torch.cat([part.each for part in made], 1)
        columns["each"] = torch.where(scored.view(-1, 1, 1, 1, 1), every, torch.zeros_like(every))
    versions = tuple(
        " ".join(f"{source}={version}" for source, version in zip(parts, row, strict=True))
        for row in zip(*[part.versions for part in made], strict=True)
    )
    failed_by = {source: part.failed for source, part in parts.items()}
    return Scored(
        names=names, versions=versions, reasons=tuple("; ".join(f) for f in faults), failed_by=failed_by, **columns
    )


def unscored(names: tuple[str, ...], images: Tensor, reason: str, gradient: bool, each: bool = False) -> Scored:
    """The answer of a source that gave none: nan, and why."""
    count = len(images)
    nan = torch.full((count, len(names)), torch.nan, dtype=torch.float64)
    extra = {"reward": nan[:, 0], "gradients": torch.zeros(images.shape)} if gradient else {}
    if gradient and each:
        extra["each"] = torch.zeros(count, len(names), *images.shape[1:])
    return Scored(names, nan, nan, nan, nan, ("none",) * count, (reason,) * count, **extra)
