"""Where a diffusion actor's rewards come from. Calls are asynchronous and bounded; a function is here, the served
judge in `serving/reward_source.py`.

    future = source.submit(images, prompts, gradient=True)      returns at once unless too many calls are under way
    scored = future.result()

Left out on purpose: aggregation over a group, which is the algorithm's.
"""

from __future__ import annotations

import importlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from zr_ray.config.t2i import RewardSection
from zr_ray.errors import ConfigError, RewardError


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

    @property
    def failed(self) -> int:
        """Images that were not scored."""
        return sum(bool(reason) for reason in self.reasons)


def join_scored(parts: Sequence[Scored]) -> Scored:
    """One after the other."""
    columns = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in ("mu", "sigma", "parsed", "entropy")
    }
    for name in ("reward", "gradients"):
        if getattr(parts[0], name) is not None:
            columns[name] = torch.cat([getattr(part, name) for part in parts])
    versions, reasons = (sum((getattr(part, name) for part in parts), ()) for name in ("versions", "reasons"))
    return Scored(names=parts[0].names, versions=versions, reasons=reasons, **columns)


class RewardSource:
    """Bounds the calls under way; subclasses answer one call."""

    def __init__(self, config: RewardSection) -> None:
        self.config, self.names = config, tuple(config.weights)
        self.weights = torch.tensor(list(config.weights.values()), dtype=torch.float64)
        self.counters: Counter[str] = Counter()
        """calls, items, failed."""
        self.versions: set[str] = set()
        """Hashes of all judges that have answered; more than one after a refresh."""
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
        self.versions.update(made.versions)
        self.counters.update({"calls": 1, "items": len(prompts), "failed": made.failed})
        return made

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
        self._function = named_function(config.function)

    def answer(self, images: Tensor, prompts: Sequence[str], gradient: bool) -> Scored:
        if gradient:
            raise RewardError(
                f"{self.config.function} gives scores only; use an algorithm of the policy family, or a judge"
            )
        made = self._function(to_bytes(images).movedim(1, -1).numpy(), list(prompts))
        missing = [name for name in self.names if name not in made]
        if missing:
            raise RewardError(
                f"{self.config.function} must return {list(self.names)}, {missing} are missing; see reward.weights"
            )
        mu = torch.stack([torch.as_tensor(made[name], dtype=torch.float64) for name in self.names], -1)
        reasons = tuple("" if ok else f"{self.config.function} answered nan" for ok in mu.isfinite().all(-1).tolist())
        version = (self.config.function,) * len(prompts)
        return Scored(self.names, mu, torch.zeros_like(mu), mu, torch.zeros_like(mu), version, reasons)


def named_function(name: str) -> Callable:
    """`package.module:callable`. Raises ConfigError if there is none."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"reward.function must be package.module:callable, got {name!r} ({error}); correct it"
        ) from None


def to_bytes(images: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
