"""Sending a pure call again: what may be repeated, how long to wait, when to stop. Used by the client and by the
gateway.

Left out on purpose: hedging (a second copy before the first has failed); it doubles load when there is least room for
it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from zr_ray.errors import DeadlineError, OverloadError, RewardError

Answer = TypeVar("Answer")


class TryAgain(Exception):
    """An attempt failed in a way that another one may not. `after_s`: what the service asked for."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.after_s = reason, after_s


class Retry:
    """Repeats a call on back-pressure and lost replicas until it answers, a deadline or a number of attempts.

    wait before attempt n+1: uniform in [0, min(cap_s, base_s 2^n)], and at least what the service asked for ("full
    jitter")
    """

    def __init__(self, deadline_s: float, attempts: int = 12, base_s: float = 0.05, cap_s: float = 2.0) -> None:
        self.deadline_s, self.attempts, self.base_s, self.cap_s = deadline_s, attempts, base_s, cap_s
        self.repeated: Counter[str] = Counter()

    async def call(self, send: Callable[[float], Awaitable[Answer]]) -> Answer:
        """send(seconds left) -> answer.   Raises: DeadlineError; OverloadError after the last attempt; what `send`
        raises otherwise."""
        end = time.monotonic() + self.deadline_s
        for attempt in range(self.attempts):
            try:
                return await asyncio.wait_for(send(end - time.monotonic()), max(0.001, end - time.monotonic()))
            except TimeoutError:
                raise DeadlineError(
                    f"the reward service did not answer within {self.deadline_s:g} s ({attempt} failed attempts)"
                ) from None
            except Exception as error:
                error = getattr(error, "cause", None) or error  # Ray wraps what a replica raised
                again = repeatable(error)
                if again is None:
                    raise error from None
            self.repeated[again.reason] += 1
            pause = max(again.after_s, random.uniform(0, min(self.cap_s, self.base_s * 2**attempt)))
            if time.monotonic() + pause > end:
                raise DeadlineError(
                    f"the reward service did not answer within {self.deadline_s:g} s; last: {again}"
                ) from None
            await asyncio.sleep(pause)
        raise OverloadError(
            f"the reward service did not answer {self.attempts} attempts; last: {again}; send less, or add replicas"
        )


def repeatable(error: Exception) -> TryAgain | None:
    """Why a call that raised `error` may be sent again, or None if it may not."""
    import ray.exceptions as core
    import ray.serve.exceptions as served

    if isinstance(error, TryAgain):
        return error
    if isinstance(error, (OverloadError, served.BackPressureError)):
        return TryAgain("back-pressure")
    if isinstance(error, RewardError):
        return None
    lost = (
        core.RayActorError,
        core.ActorUnavailableError,
        core.WorkerCrashedError,
        core.ObjectLostError,
        core.OwnerDiedError,
        core.NodeDiedError,
        core.TaskCancelledError,
        served.ReplicaUnavailableError,
        served.RequestCancelledError,
    )
    return TryAgain("lost replica") if isinstance(error, lost) else None
