"""Reading HTTP bodies: bounded in bytes each, in bytes together, and in time. What is read holds no place among the
requests that are worked on; a caller takes one when its body is complete.

Left out on purpose: what a body says; see `wire.py`.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from zr_ray.serving.refusals import Refusal

LARGE_BYTES = 8 * 2**20
"""Once so much of bodies has been let go, free memory is given back to the system."""
GIVE_BACK_AFTER_S = 1.0


class Bodies:
    """The bodies that one gateway holds. Verb: read."""

    def __init__(self, body_bytes: int, held_bytes: int, pace_s: float, bytes_per_s: float) -> None:
        """body_bytes: of one body. held_bytes: of all together. pace_s: a body must end, or grow by pace_s x
        bytes_per_s, every so many seconds."""
        self._body_bytes, self._held_bytes = body_bytes, held_bytes
        self._pace_s, self._pace_bytes = pace_s, pace_s * bytes_per_s
        self.held = 0
        """Bytes held now."""
        self._let_go = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, counted as held until the block ends. Raises Refusal as soon as it is known to be too large or too
        slow."""
        counted = [0]
        try:
            yield await self._read(request, counted)
        finally:
            self.held -= counted[0]
            self._released(counted[0])

    def _released(self, size: int) -> None:
        """Bodies arrive in pieces of some kilobytes, and the C library keeps what lies between pieces that live on:
        three bodies of 60 MB left 180 MB with a process that needs 150."""
        due = self._let_go < LARGE_BYTES <= self._let_go + size
        self._let_go += size
        if due:
            asyncio.get_running_loop().call_later(GIVE_BACK_AFTER_S, self._give_back)

    def _give_back(self) -> None:
        self._let_go = 0
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's own
            asyncio.get_running_loop().run_in_executor(None, trim, 0)

    async def _read(self, request: Request, counted: list[int]) -> bytes:
        self._check_length(request)
        parts, size, mark = [], 0, 0
        chunks, loop = request.stream(), asyncio.get_running_loop()
        end = loop.time() + self._pace_s
        while True:
            try:
                chunk = await asyncio.wait_for(anext(chunks, None), end - loop.time())
            except TimeoutError:
                raise Refusal(
                    408,
                    "too_slow",
                    f"a body must end, or bring {self._pace_bytes:.0f} bytes, within {self._pace_s:g} s; got {size}"
                    f" bytes, {size - mark} of them in that time; send it at once",
                ) from None
            except ClientDisconnect:
                raise Refusal(400, "bad_request", f"the caller went away after {size} bytes") from None
            if chunk is None:
                return b"".join(parts)
            size += len(chunk)
            if size > self._body_bytes:
                raise _too_large(self._body_bytes, "more")
            if self.held + len(chunk) > self._held_bytes:
                raise Refusal(429, "too_many", f"this gateway holds {self.held} bytes of requests; retry later")
            self.held += len(chunk)
            counted[0] += len(chunk)
            parts.append(chunk)
            if size - mark >= self._pace_bytes:
                mark, end = size, loop.time() + self._pace_s

    def _check_length(self, request: Request) -> None:
        length = request.headers.get("content-length")
        if length is None and "chunked" not in request.headers.get("transfer-encoding", ""):
            raise Refusal(411, "no_length", "send Content-Length, or chunks")
        if length is not None and (not length.isascii() or not length.isdigit() or int(length[:20]) > self._body_bytes):
            raise _too_large(self._body_bytes, f"Content-Length {length[:20]}")


def _too_large(limit: int, got: str) -> Refusal:
    return Refusal(413, "body_too_large", f"a body may have {limit} bytes, got {got}; split the request")
