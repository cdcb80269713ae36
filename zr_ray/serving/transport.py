"""The two ways a client reaches the service. Both send one RewardRequest and return one RewardReply, on the client's
event loop.

Left out on purpose: retries, splitting and bounds; those are the client's, equal for both.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from zr_ray.errors import RewardError
from zr_ray.records import RewardReply, RewardRequest
from zr_ray.serving import wire
from zr_ray.serving.retry import TryAgain


class HandleTransport:
    """Through a Ray Serve DeploymentHandle, for callers inside the cluster; tensors travel through Ray's object
    store."""

    def __init__(self, app: str, judge: str = "student") -> None:
        from ray import serve

        self._handle = serve.get_deployment_handle(judge, app_name=app)

    async def send(self, request: RewardRequest, left_s: float) -> RewardReply:
        return await self._handle.score.remote(request)

    async def describe(self, left_s: float) -> dict:
        """What the judge says about itself: dimensions, bins, hashes, limits."""
        return await self._handle.describe.remote()

    async def close(self) -> None:
        """Nothing is held."""


class HttpTransport:
    """Over HTTP with safetensors both ways, for callers outside. Redirects are not followed: the token goes where it
    was meant to go."""

    def __init__(self, url: str, token: str | None = None, judge: str = "student", connections: int = 16) -> None:
        self._url, self._judge, self._connections = url.rstrip("/"), judge, connections
        self._headers = {"Accept": wire.SAFETENSORS, "Content-Type": wire.SAFETENSORS}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._session: Any = None  # aiohttp is imported where the first call is made

    async def send(self, request: RewardRequest, left_s: float) -> RewardReply:
        path = "score" if request.weights is None else "score_and_grad"
        body = await asyncio.get_running_loop().run_in_executor(None, wire.request_safetensors, request)
        content_type, content = await self._call("POST", path, {"X-Request-Id": request.request_id}, body)
        if content_type != wire.SAFETENSORS:
            raise RewardError(f"the reward service must answer with {wire.SAFETENSORS}, got {content_type}")
        return wire.read_reply(content)

    async def describe(self, left_s: float) -> dict:
        """What the judge says about itself: dimensions, bins, hashes, limits."""
        _, content = await self._call("GET", "judge", {})
        return json.loads(content)

    async def _call(self, method: str, path: str, headers: dict, body: bytes | None = None) -> tuple[str, bytes]:
        """(content type, body) of a reply with scores or a description. Raises TryAgain, or RewardError with what the
        service said."""
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections), timeout=aiohttp.ClientTimeout(None)
            )
        try:
            async with self._session.request(
                method,
                f"{self._url}/v1/{path}",
                params={"judge": self._judge},
                data=body,
                allow_redirects=False,
                headers=self._headers | headers,
            ) as response:
                content = await response.read()
        except aiohttp.ClientConnectionError as error:
            raise TryAgain("connection") from error
        except aiohttp.ClientPayloadError as error:
            raise TryAgain("broken reply") from error
        if response.status == 200 or response.content_type == wire.SAFETENSORS:  # 422 with a reply: none was scored
            return response.content_type, content
        if response.status in (429, 500, 502, 503):
            raise TryAgain(f"HTTP {response.status}", _seconds(response.headers.get("Retry-After", "0")))
        raise RewardError(f"the reward service answered {response.status}: {content[:300].decode(errors='replace')}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _seconds(text: str) -> float:
    try:
        return min(30.0, max(0.0, float(text)))
    except ValueError:
        return 0.0
