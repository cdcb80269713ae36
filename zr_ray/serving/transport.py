"""The two ways a client reaches the service. Both send one RewardRequest and return one RewardReply, on the client's
event loop.

Left out on purpose: retries, splitting and bounds; those are the client's, equal for both.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from typing import Any
from urllib.parse import urlsplit

from zr_ray.errors import RewardError
from zr_ray.records import RewardReply, RewardRequest
from zr_ray.serving import wire
from zr_ray.serving.retry import TryAgain


def check_target(target: str) -> bool:
    """Whether a target is an address (True) or the name of a Serve application (False). Raises RewardError for what is
    neither."""
    wanted = "target must be http://host:port/route, or the name of a Serve application"
    if not isinstance(target, str) or not target.strip():
        raise RewardError(f"{wanted}; got {target!r}")
    if re.match(r"https?://", target, re.IGNORECASE):
        parts = urlsplit(target)
        try:
            named = bool(parts.hostname) and parts.port != 0
        except ValueError:
            named = False
        if not named or parts.query or parts.fragment:
            raise RewardError(f"{wanted}; got {target!r}: a host is needed, a query or fragment is not")
        return True
    if re.search(r"[:/\s]", target):
        raise RewardError(f"{wanted}; got {target!r}; write http://{re.sub(r'^[a-z+]*:?/+', '', target.strip())}")
    return False


class HandleTransport:
    """Through a Ray Serve DeploymentHandle, for callers inside the cluster; tensors travel through Ray's object
    store."""

    def __init__(self, app: str, judge: str = "student") -> None:
        """Raises RewardError if this process is in no cluster, or the cluster has no such application."""
        import ray

        self.name = f"the Serve application {app!r}"
        if not ray.is_initialized():
            _join(app)
        from ray import serve
        from ray.serve.exceptions import RayServeException

        try:
            self._handle = serve.get_deployment_handle(judge, app_name=app)
        except (RayServeException, KeyError) as error:
            raise RewardError(
                f"the cluster serves no application {app!r} with a judge {judge!r}: {str(error).splitlines()[0]};"
                " `serve status` lists what there is"
            ) from None

    async def send(self, request: RewardRequest, left_s: float) -> RewardReply:
        return await self._handle.score.remote(request)

    async def describe(self, left_s: float) -> dict:
        """What `GET /v1/judge` says."""
        return await self._handle.describe.remote()

    async def close(self) -> None:
        """Nothing is held."""


def _join(app: str) -> None:
    import ray

    try:  # never a cluster of its own, which `ray.init()` without an address would start
        ray.init(address="auto", configure_logging=False, log_to_driver=False)
    except ConnectionError:
        raise RewardError(
            f"the application {app!r} is reached from inside its Ray cluster, and there is none here; set RAY_ADDRESS,"
            " or give the service's address http://host:port/route"
        ) from None


class HttpTransport:
    """Over HTTP with safetensors both ways, for callers outside. Redirects are not followed: the token goes where it
    was meant to go."""

    def __init__(self, url: str, token: str | None = None, judge: str = "student", connections: int = 16) -> None:
        import aiohttp  # noqa: F401  here, not in the time of the first call

        self._url, self._judge, self._connections = url.rstrip("/"), judge, connections
        self.name = f"the reward service at {self._url}"
        self._headers = {"Accept": wire.SAFETENSORS, "Content-Type": wire.SAFETENSORS}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._session: Any = None  # aiohttp.ClientSession, made on the client's loop

    async def send(self, request: RewardRequest, left_s: float) -> RewardReply:
        path = "score" if request.weights is None else "score_and_grad"
        body = await asyncio.get_running_loop().run_in_executor(None, wire.request_safetensors, request)
        headers = {"X-Request-Id": request.request_id}
        content, kind = await self._ask("POST", path, headers, body)
        if kind != wire.SAFETENSORS:
            raise RewardError(f"{self.name} answered {kind} where safetensors were expected: {_text(content)}")
        return wire.read_reply(content)

    async def describe(self, left_s: float) -> dict:
        """What `GET /v1/judge` says."""
        content, _ = await self._ask("GET", "judge", {"Accept": wire.JSON})
        return json.loads(content)

    async def _ask(self, method: str, path: str, headers: dict, body: bytes | None = None) -> tuple[bytes, str]:
        """(content, media type) of a reply. Raises TryAgain, or RewardError."""
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
            raise TryAgain("connection", cause=_connection_cause(error)) from error
        except aiohttp.ClientPayloadError as error:
            raise TryAgain("broken reply") from error
        except (aiohttp.InvalidURL, ValueError) as error:
            raise RewardError(f"{self.name}: {error}; correct the address") from None
        status = response.status
        if response.content_type == wire.SAFETENSORS or status == 200:
            return content, response.content_type
        # a proxy that has just started knows no route yet, and says 404 in plain text; the gateway's own 404 is JSON
        starting = status == 404 and response.content_type != wire.JSON
        if starting or status in (408, 429, 500, 502, 503):
            said = f"HTTP {status}: {_text(content)}" if starting else f"HTTP {status}"
            raise TryAgain(f"HTTP {status}", _seconds(response.headers.get("Retry-After", "0")), said)
        raise RewardError(f"{self.name} answered {status}: {_text(content)}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _connection_cause(error: Exception) -> str:
    """What kept a connection from being made, in words."""
    inner = getattr(error, "os_error", None) or error
    if isinstance(inner, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "connection refused: nothing listens there"
    if isinstance(inner, socket.gaierror):
        return f"the name of the host is not known ({inner.strerror})"
    return f"the connection failed ({type(error).__name__}: {str(error)[:120]})"


def _text(content: bytes) -> str:
    return " ".join(content[:300].decode(errors="replace").split())


def _seconds(text: str) -> float:
    try:
        return min(30.0, max(0.0, float(text)))
    except ValueError:
        return 0.0
