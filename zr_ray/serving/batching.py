"""Dynamic batching across callers on one event loop: items join the next batch for as long as the judge is busy.

    submit(items) --> waiting --(judge free: take up to max_items, oldest first)--> work(items) in one thread -->
    answers

Nobody waits for a batch to fill: a lone caller is computed at once, and under load the batch is what arrived during the
last one. Ray Serve's own `@serve.batch` forms its batches before the running one has ended, so without a waiting time
they stay small, and with one every lone caller pays it.
Left out on purpose: priorities; the oldest item goes first, so nobody starves.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from zr_ray.errors import OverloadError


class Batcher:
    """Owns the thread in which the judge computes. Verbs: submit, close; `busy_s` for health checks."""

    def __init__(self, work: Callable[[list, list[float]], list], max_items: int, max_waiting: int) -> None:
        """work: (items, seconds each waited) -> one answer per item, in order; runs in the thread, one batch at a time.
        max_items: largest batch. max_waiting: items that may wait; more are refused with OverloadError."""
        self._work, self.max_items, self.max_waiting = work, max_items, max_waiting
        self._waiting: deque[tuple[object, asyncio.Future, float]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._running: asyncio.Task | None = None
        self._batch_started: float | None = None

    async def submit(self, items: Sequence) -> list:
        """Answers of the items, in order; they may be computed in several batches, together with other callers' items.

        Raises: OverloadError if they do not fit among the waiting, or whatever `work` raised for their batch."""
        if len(self._waiting) + len(items) > self.max_waiting:
            raise OverloadError(
                f"the judge takes {self.max_waiting} waiting items, has {len(self._waiting)}, got {len(items)} more;"
                " retry later"
            )
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        futures = [loop.create_future() for _ in items]
        self._waiting.extend(zip(items, futures, [now] * len(items), strict=True))
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._run())
        try:
            return await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()  # a caller that went away; nothing happens to finished ones

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        # no timer: a batch is what came while the last one was computed, so an idle judge answers at once
        while self._waiting:
            taken = []
            while self._waiting and len(taken) < self.max_items:
                entry = self._waiting.popleft()
                if not entry[1].done():  # done: its caller went away while it waited
                    taken.append(entry)
            if not taken:
                continue
            started = self._batch_started = time.perf_counter()
            try:
                answers = await loop.run_in_executor(
                    self._thread,
                    self._work,
                    [item for item, _, _ in taken],
                    [started - arrived for _, _, arrived in taken],
                )
                if len(answers) != len(taken):
                    raise RuntimeError(f"{len(taken)} items were given, {len(answers)} answers came")
            except Exception as error:
                for _, future, _ in taken:
                    if not future.done():
                        future.set_exception(error)
                        future.exception()  # a caller with several failed items sees the first; the rest are not news
                continue
            finally:
                self._batch_started = None
            for (_, future, _), answer in zip(taken, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    @property
    def busy_s(self) -> float:
        """Seconds the present batch has been computed for; 0 when idle."""
        started = self._batch_started
        return 0.0 if started is None else time.perf_counter() - started

    def close(self) -> None:
        """Let the present batch end and free the thread."""
        self._thread.shutdown(wait=True)
