"""Sending a pure call again: what may be repeated, how long to wait, when to stop. Used by the client and by the
gateway.

Left out on purpose: hedging (a second copy before the first has failed); it doubles load when there is least room for
it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from zr_ray.errors import DeadlineError, OverloadError, RewardError

Answer = TypeVar("Answer")


class TryAgain(Exception):
    """An attempt failed in a way that another one may not."""

    def __init__(self, reason: str, after_s: float = 0.0, cause: str = "") -> None:
        """reason: a few words, the same for the same kind. after_s: what the service asked for. cause: what to say of
        this very attempt (default: the reason)."""
        super().__init__(cause or reason)
        self.reason, self.after_s = reason, after_s


class Retry:
    """Repeats a call on back-pressure and lost replicas until it answers, a deadline or a number of attempts.

    wait before attempt n+1: uniform in [0, min(cap_s, base_s 2^n)], and at least what the service asked for ("full
    jitter")
    """

    def __init__(
        self,
        deadline_s: float,
        attempts: int | None = None,
        base_s: float = 0.05,
        cap_s: float = 2.0,
        whom: str = "the reward service",
    ) -> None:
        """attempts: at most so many; None: until the deadline. whom: what does not answer, for messages."""
        self.deadline_s, self.attempts, self.base_s, self.cap_s, self.whom = deadline_s, attempts, base_s, cap_s, whom
        self.repeated: Counter[str] = Counter()

    async def call(self, send: Callable[[float], Awaitable[Answer]]) -> Answer:
        """send(seconds left) -> answer.   Raises: DeadlineError; OverloadError after the last attempt; what `send`
        raises otherwise."""
        end, last = time.monotonic() + self.deadline_s, None
        for attempt in itertools.count() if self.attempts is None else range(self.attempts):
            try:
                return await asyncio.wait_for(send(end - time.monotonic()), max(0.001, end - time.monotonic()))
            except TimeoutError:
                raise self._too_late(attempt, last) from None
            except Exception as error:
                error = getattr(error, "cause", None) or error  # Ray wraps what a replica raised
                last = repeatable(error)
                if last is None:
                    raise error from None
            self.repeated[last.reason] += 1
            pause = max(last.after_s, random.uniform(0, min(self.cap_s, self.base_s * 2 ** min(attempt, 30))))
            if time.monotonic() + pause > end:
                raise self._too_late(attempt + 1, last) from None
            await asyncio.sleep(pause)
        raise OverloadError(
            f"{self.whom} did not answer {self.attempts} attempts; last: {last}; send less, or add replicas"
        )

    def _too_late(self, failed: int, last: TryAgain | None) -> DeadlineError:
        why = f"last: {last}" if last is not None else "the time-out passed without any answer"
        return DeadlineError(
            f"{self.whom} did not answer within {self.deadline_s:g} s ({failed} failed attempts); {why}; look"
            " whether it runs, or raise deadline_s"
        )


def repeatable(error: Exception) -> TryAgain | None:
    """Why a call that raised `error` may be sent again, or None if it may not."""
    if isinstance(error, TryAgain):
        return error
    if isinstance(error, OverloadError):
        return TryAgain("back-pressure")
    if isinstance(error, RewardError) or "ray.serve" not in sys.modules:
        return None  # without Ray no error is Ray's, and its import would take longer than many a deadline
    import ray.exceptions as core
    import ray.serve.exceptions as served

    if isinstance(error, served.BackPressureError):
        return TryAgain("back-pressure")
    lost = (
        core.RayActorError,
        core.ActorUnavailableError,
        core.WorkerCrashedError,
        core.ObjectLostError,
        core.OwnerDiedError,
        core.NodeDiedError,
        core.TaskCanceledError,
        served.ReplicaUnavailableError,
        served.RequestCanceledError,
    )
    return TryAgain("lost replica") if isinstance(error, lost) else None
