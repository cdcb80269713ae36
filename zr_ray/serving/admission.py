"""What the gateway's class refers to. Serve pickles that class by value, so what it uses must be importable.

Left out on purpose: the order in which a request is refused; that is the gateway's.
"""

from __future__ import annotations

from fastapi.responses import JSONResponse, Response

from zr_ray.records import RewardReply
from zr_ray.serving import wire

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def response_of(reply: RewardReply, accept: str) -> Response:
    """A reply in the format the caller accepts: 200, or 422 if no item was scored."""
    status = 200 if "ok" in reply.status else 422
    if wire.SAFETENSORS in accept:
        return Response(wire.reply_safetensors(reply), status, media_type=wire.SAFETENSORS)
    return JSONResponse(wire.reply_json(reply), status)


def proxy_host() -> str | None:
    """Address Serve's HTTP proxies listen on. Not in Serve's public interface of 2.60."""
    from ray.serve.context import _get_global_client

    return _get_global_client().http_config.host
