"""The two ways a client reaches the service. Both send one RewardRequest and return one RewardReply, on the client's
event loop.

Left out on purpose: retries, splitting and bounds; those are the client's, equal for both.
"""

from __future__ import annotations

import asyncio

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
        self._session = None

    async def send(self, request: RewardRequest, left_s: float) -> RewardReply:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections), timeout=aiohttp.ClientTimeout(None)
            )
        path = "score" if request.weights is None else "score_and_grad"
        body = await asyncio.get_running_loop().run_in_executor(None, wire.request_safetensors, request)
        try:
            async with self._session.post(
                f"{self._url}/v1/{path}",
                params={"judge": self._judge},
                data=body,
                allow_redirects=False,
                headers=self._headers | {"X-Request-Id": request.request_id},
            ) as response:
                content = await response.read()
        except aiohttp.ClientConnectionError as error:
            raise TryAgain("connection") from error
        except aiohttp.ClientPayloadError as error:
            raise TryAgain("broken reply") from error
        if response.content_type == wire.SAFETENSORS:
            return wire.read_reply(content)
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
