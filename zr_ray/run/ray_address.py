"""Whether a Ray cluster answers where RAY_ADDRESS says: asked before `ray.init`, which would try for minutes."""

from __future__ import annotations

import re
import socket

from zr_ray.errors import PlacementError

PROBE_DEADLINE_S = 4.0
"""Of each of two questions; a cluster in the next room answers in milliseconds."""


def check_ray_address(address: str | None) -> None:
    """Raise PlacementError within ten seconds if nobody answers at an address of the forms that `ray.init` takes."""
    if not address or address in ("auto", "local"):
        return
    if re.match(r"https?://", address):
        raise PlacementError(
            f"RAY_ADDRESS {address} is where jobs are submitted (ray job submit --working-dir . -- python jobs/...); a"
            " job started by hand joins a cluster by host:6379; set that, or unset RAY_ADDRESS"
        )
    host, _, port = address.removeprefix("ray://").strip("[]").rpartition(":")
    if not host or not port.isdigit():
        raise PlacementError(f"RAY_ADDRESS must be host:port, ray://host:port, auto or local, got {address!r}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_DEADLINE_S):
            pass
    except (OSError, OverflowError) as error:
        cause = "nothing listens there" if isinstance(error, ConnectionRefusedError) else str(error) or "no answer"
        raise _nobody(address, cause) from None
    if not address.startswith("ray://") and not _is_head(f"{host}:{port}"):
        raise _nobody(address, "what listens there is no Ray head")


def _is_head(address: str) -> bool:
    """Whether a Ray head (its GCS) says it is well."""
    import grpc

    channel = grpc.insecure_channel(address)
    try:
        grpc.channel_ready_future(channel).result(PROBE_DEADLINE_S)  # speaks HTTP/2, as a head does
        return True
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()


def _nobody(address: str, cause: str) -> PlacementError:
    return PlacementError(
        f"no Ray cluster answers at RAY_ADDRESS {address}: {cause}; start it, correct the address, or unset RAY_ADDRESS"
    )
