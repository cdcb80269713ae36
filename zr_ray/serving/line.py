"""What a client holds in one process: an event loop in a thread, a transport, and the slots of requests under way.

Left out on purpose: what is asked; see `client.py`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine

from zr_ray.errors import RewardError
from zr_ray.serving.transport import HandleTransport, HttpTransport

CLOSE_DEADLINE_S = 10.0
"""Seconds that `close` waits for the thread; a name that is being looked up cannot be interrupted."""


class Line:
    """Owns the thread. Verbs: begin, wait, close. Belongs to the process that made it: a forked child has the memory of
    the thread, but not the thread."""

    def __init__(self, connect: Callable[[], HandleTransport | HttpTransport], max_in_flight: int) -> None:
        self.pid = os.getpid()
        self.transport = connect()  # first: it refuses what cannot be reached at all
        self.slots = asyncio.Semaphore(max_in_flight)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=_turn, args=(self.loop,), name="reward-client", daemon=True)
        self.thread.start()
        self.closed = False

    def begin(self, work: Coroutine) -> concurrent.futures.Future:
        """Start a coroutine in the thread. Raises RewardError if the line is closed."""
        if self.closed or not self.thread.is_alive():
            work.close()
            raise RewardError("this client is closed; make another")
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def wait(self, work: Coroutine):
        """What the coroutine returns or raises; RewardError if the line is closed meanwhile."""
        future = self.begin(work)
        try:
            while True:
                done, _ = concurrent.futures.wait([future], timeout=1.0)
                if done:
                    return future.result()
                if not self.thread.is_alive():
                    raise RewardError("this client was closed during the call")
        except concurrent.futures.CanceledError:
            raise RewardError("this client was closed during the call") from None
        finally:
            future.cancel()  # a caller that was interrupted; nothing happens to a finished one

    def close(self) -> None:
        """End the connections and the thread. Does nothing in another process than its own."""
        if self.closed or self.pid != os.getpid():
            return
        self.closed = True

        async def end() -> None:
            await self.transport.close()
            self.loop.stop()

        if self.thread.is_alive():
            asyncio.run_coroutine_threadsafe(end(), self.loop)
            if threading.current_thread() is not self.thread:  # the last reference may go there
                self.thread.join(CLOSE_DEADLINE_S)


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Run until stopped, then let everything that was begun come to its end: what outlives its loop complains of it."""

    async def end_all() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    loop.run_forever()
    loop.run_until_complete(end_all())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
