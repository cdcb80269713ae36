"""Where a diffusion actor's rewards come from. Calls are asynchronous and bounded; a function in the actor is here,
several sources beside each other in `joint_reward.py`, the served ones in `serving/reward_source.py`.

    future = source.submit(images, prompts, gradient=True)      returns at once unless too many calls are under way
    scored = future.result()

Left out on purpose: aggregation over a group, which is the algorithm's.
"""

from __future__ import annotations

import threading
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from zr_ray.config.t2i_reward import RewardSection
from zr_ray.errors import RewardError
from zr_ray.workers.user_function import FunctionScorer

HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Scored:
    """What is said about B images. nan where an image could not be scored."""

    names: tuple[str, ...]
    """The D axis."""
    mu: Tensor
    sigma: Tensor
    parsed: Tensor
    entropy: Tensor
    """[B, D] float64 each; a function has no spread: sigma and entropy 0, parsed = mu."""
    versions: tuple[str, ...]
    """B hashes of what answered."""
    reasons: tuple[str, ...]
    """B, empty for a scored image."""
    reward: Tensor | None = None
    """[B], what was differentiated."""
    gradients: Tensor | None = None
    """[B, 3, H, W] dR/dimage, 0 where not scored."""
    each: Tensor | None = None
    """[B, D, 3, H, W] gradient of every score, mu_d - k sigma_d, where `reward.balance` asks for it; 0 where not scored
    or not weighted."""
    failed_by: Mapping[str, int] = field(default_factory=dict)
    """Of several sources: how many images each left unscored."""
    numbers: tuple[int, ...] = ()
    """B version numbers of what answered (`RewardSource.numbers`); -1 for an image that was not scored."""

    @property
    def failed(self) -> int:
        """Images that were not scored."""
        return sum(bool(reason) for reason in self.reasons)


def join_scored(parts: Sequence[Scored]) -> Scored:
    """One after the other."""
    columns = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in ("mu", "sigma", "parsed", "entropy")
    }
    for name in ("reward", "gradients", "each"):
        if getattr(parts[0], name) is not None:
            columns[name] = torch.cat([getattr(part, name) for part in parts])
    failed_by: Counter[str] = Counter()
    for part in parts:
        failed_by.update(part.failed_by)
    for name in ("versions", "reasons", "numbers"):
        columns[name] = sum((getattr(part, name) for part in parts), ())
    return Scored(names=parts[0].names, failed_by=dict(failed_by), **columns)


def hash_number(version: str) -> int:
    """The first 8 hex digits of a judge's hash as a number, so that it can stand among metrics: f"{int(x):08x}" is the
    text again. Of what is named otherwise a checksum of the name. Below 2^32: sums over a step's images stay exact."""
    return int(version[:8], 16) if len(version) == 64 and HEX.issuperset(version) else zlib.crc32(version.encode())


class RewardSource:
    """Bounds the calls under way; subclasses answer one call."""

    def __init__(self, config: RewardSection) -> None:
        self.config, self.names = config, tuple(config.score_weights)
        self.weights = torch.tensor(list(config.score_weights.values()), dtype=torch.float64)
        self.counters: Counter[str] = Counter()
        """calls, items, failed."""
        self.versions: set[str] = set()
        """Hashes of all judges that have answered; more than one after a refresh."""
        self.numbers: dict[str, int] = {}
        """Hash -> number of the version: those that a run knows from the start, then others as they come."""
        self._numbering = threading.Lock()
        self._faults: dict[str, str] = {}
        self._told: set[str] = set()
        self._slots = threading.BoundedSemaphore(config.in_flight)
        self._pool = ThreadPoolExecutor(config.in_flight, thread_name_prefix="reward")

    def submit(self, images: Tensor, prompts: Sequence[str], gradient: bool = False) -> Future:
        """A future of `Scored`. images: [B, 3, H, W] in [0, 1]; scores without gradient see them rounded to 8 bits, as
        a file would be."""
        self._slots.acquire()
        try:
            future = self._pool.submit(self._call, images.detach().cpu(), tuple(prompts), gradient)
        except BaseException:
            self._slots.release()
            raise
        future.add_done_callback(lambda _: self._slots.release())
        return future

    def _call(self, images: Tensor, prompts: tuple[str, ...], gradient: bool) -> Scored:
        made = self.answer(images, prompts, gradient)
        numbers = tuple(
            -1 if reason else self._number(version) for version, reason in zip(made.versions, made.reasons, strict=True)
        )
        made = replace(made, numbers=numbers)
        self.versions.update(made.versions)
        self.counters.update({"calls": 1, "items": len(prompts), "failed": made.failed})
        self.counters.update({f"failed by {name}": count for name, count in made.failed_by.items() if count})
        for reason in made.reasons:
            if reason:
                self._faults.setdefault(reason.partition(":")[0], reason)
        return made

    def _number(self, version: str) -> int:
        with self._numbering:
            return self.numbers.setdefault(version, len(self.numbers))

    def new_faults(self) -> list[str]:
        """A line for every kind of failure (of several sources: for every source) that came up since the last call."""
        new = [kind for kind in list(self._faults) if kind not in self._told]
        self._told.update(new)
        return [f"reward: an image was not scored: {self._faults[kind]}" for kind in new]

    def answer(self, images: Tensor, prompts: Sequence[str], gradient: bool) -> Scored:
        """One call."""
        raise NotImplementedError

    def close(self) -> None:
        """End the threads; calls under way are finished."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class FunctionReward(RewardSource):
    """A user's function in the actor's own process: (images [N, H, W, 3] uint8 array, prompts) -> name -> N numbers;
    nan: not scored."""

    def __init__(self, config: RewardSection) -> None:
        super().__init__(config)
        self._scorer = FunctionScorer(config.function or "", self.names)

    def answer(self, images: Tensor, prompts: Sequence[str], gradient: bool) -> Scored:
        name = self._scorer.name
        if gradient:
            raise RewardError(f"{name} gives scores only; use an algorithm of the policy family, or a judge")
        mu = self._scorer(images, prompts)
        reasons = tuple("" if ok else f"{name} answered nan" for ok in mu.isfinite().all(-1).tolist())
        zero = torch.zeros_like(mu)
        return Scored(self.names, mu, zero, mu, zero, (name,) * len(prompts), reasons)
